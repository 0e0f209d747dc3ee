using System.CommandLine;
using ReformerNative.Tensors;

namespace ReformerNative.Cli.Report;

/// <summary><c>reformer bench report</c>.</summary>
internal static class ReportCommand
{
    private const string DefaultFile = "report.html";

    private static readonly Option<bool> Quick = new("--quick")
    {
        Description = "Short sequences, one run each: seconds instead of minutes",
    };
    private static readonly Option<string?> Lengths = new("--lengths")
    {
        Description = "Lengths of the charts of time; each divides --tokens [default: 1024,2048,4096,8192,16384,32768]",
        HelpName = "N,...",
    };

    private static readonly Option<int?> Tokens = CommonOptions.Maybe(
        "--tokens", "Tokens of a batch in the charts of time, whatever the length [default: the greatest length]", 1);

    private static readonly Option<int?> Repeat = CommonOptions.Maybe(
        "--repeat", "Runs, of which the median is reported [default: 3]", 1);
    private static readonly Option<string> Out = new("--out")
    {
        Description = "The page",
        DefaultValueFactory = _ => DefaultFile,
        HelpName = "FILE",
    };

    public static Command Create()
    {
        var command = new Command("report", "Measure attention, steps and memory, and write one HTML page about them.")
        {
            Quick, Lengths, Tokens, Repeat, Out, CommonOptions.Seed, CommonOptions.Device, CommonOptions.Precision,
            CommonOptions.Threads, CommonOptions.Json,
        };
        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult parsed)
    {
        string path = parsed.GetValue(Out)!;
        string folder = Path.GetDirectoryName(Path.GetFullPath(path))!;
        if (!Directory.Exists(folder) || Directory.Exists(path))
        {
            // Minutes before it is written.
            throw new UsageException($"--out: expected a file in an existing directory, found '{path}'");
        }

        bool json = parsed.GetValue(CommonOptions.Json);
        using ReformerContext context = CommonOptions.Context(parsed);
        ReportPlan plan = Plan(parsed, context);
        var progress = new ProgressLine(json);
        ReportData data = new ReportMeasurements(context, plan, progress).Run(CommandLine(parsed));
        File.WriteAllText(path, ReportPage.Write(data));
        if (json)
        {
            System.Text.Json.Nodes.JsonObject item = data.ToJson();
            item["out"] = path;
            Output.Json(item);
        }
        else
        {
            Console.WriteLine($"written {path}");
        }

        return ExitCode.Done;
    }

    private static ReportPlan Plan(ParseResult parsed, ReformerContext context)
    {
        bool quick = parsed.GetValue(Quick);
        int[] lengths = ParseLengths(
            parsed.GetValue(Lengths) ?? (quick ? "256,512,1024,2048" : "1024,2048,4096,8192,16384,32768"));
        int tokens = parsed.GetValue(Tokens) ?? lengths[^1];
        foreach (int length in lengths.Where(length => tokens % length != 0))
        {
            throw new UsageException(
                Output.Text($"--lengths: expected divisors of the {tokens} tokens of a batch, found {length}"));
        }

        return new ReportPlan
        {
            Lengths = lengths,
            Tokens = tokens,
            Repeat = parsed.GetValue(Repeat) ?? (quick ? 1 : 3),
            MemoryLength = quick ? 1024 : 16384,
            MeasuredDepths =
                context.Device.Type != DeviceType.Cpu ? []
                : quick ? [2]
                : [2, 12], // a GPU's memory has this process's context in it
            ShareLength = quick ? 512 : 4096,
            Seed = CommonOptions.SeedOf(parsed),
        };
    }

    private static int[] ParseLengths(string text)
    {
        string[] words = text.Split(',', StringSplitOptions.TrimEntries);
        var lengths = new int[words.Length];
        for (int i = 0; i < words.Length; i++)
        {
            if (!CommonOptions.TryParse(words[i], 1, out lengths[i])
                || (i > 0 && lengths[i] <= lengths[i - 1]))
            {
                throw new UsageException($"--lengths: expected integers from 1 up in ascending order, found '{text}'");
            }
        }

        return lengths;
    }

    /// <summary>The command as it was given.</summary>
    private static string CommandLine(ParseResult parsed) =>
        string.Join(' ', parsed.Tokens.Select(token => token.Value).Prepend("reformer"));
}
