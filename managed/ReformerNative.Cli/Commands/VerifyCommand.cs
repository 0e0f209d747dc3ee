using System.CommandLine;
using System.Text.Json.Nodes;
using ReformerNative.Cli.Verification;
using ReformerNative.Tensors;

namespace ReformerNative.Cli.Commands;

/// <summary><c>reformer verify</c>.</summary>
internal static class VerifyCommand
{
    private const int NotComparableShown = 20;

    private static readonly Argument<string[]> Directories = new("DIR")
    {
        Description = "Directories of vectors, or folders above such",
        Arity = ArgumentArity.OneOrMore,
    };

    private static readonly Option<double> LimitScale = CommonOptions.Number(
        "--limit-scale", "Factor of every limit", 1.0, 0.0, "X");
    private static readonly Option<string?> Write = new("--write")
    {
        Description = "Write the computed tensors (one directory only)",
        HelpName = "FILE",
    };


    public static Command Create()
    {
        var command = new Command(
            "verify",
            "Compare with vectors of other implementations, tensor by tensor, with their recorded rotations; exit code "
                + "1 past a limit."
        )
        {
            Directories, LimitScale, Write, CommonOptions.Device, CommonOptions.Precision, CommonOptions.Threads,
            CommonOptions.Json,
        };
        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult parsed)
    {
        List<string> directories = [.. parsed.GetRequiredValue(Directories).SelectMany(VectorCase.Find)];
        string? write = parsed.GetValue(Write);
        if (write is not null && directories.Count != 1)
        {
            throw new UsageException($"--write: expected one directory to verify, found {directories.Count}");
        }

        bool json = parsed.GetValue(CommonOptions.Json);
        using ReformerContext context = CommonOptions.Context(parsed);
        int failed = 0;
        foreach (string directory in directories)
        {
            CaseVerdict verdict = RunCase(directory, context, parsed.GetValue(LimitScale), write);
            failed += verdict.Passed ? 0 : 1;
            if (json)
            {
                Output.Json(ToJson(verdict));
            }
            else
            {
                Print(verdict);
            }
        }

        if (!json)
        {
            Console.WriteLine(failed == 0 ? Output.Text($"{directories.Count} of {directories.Count} passed")
                : Output.Text($"{failed} of {directories.Count} failed"));
        }

        return failed == 0 ? ExitCode.Done : ExitCode.Failed;
    }

    /// <summary>A directory that cannot be run fails by itself; the others are still verified.</summary>
    private static CaseVerdict RunCase(string directory, ReformerContext context, double limitScale, string? write)
    {
        try
        {
            return VectorCase.Run(directory, context, limitScale, write);
        }
        catch (Exception error) when (error is not OutOfMemoryException)
        {
            string message = Failure.Describe(error).Message;
            Console.Error.WriteLine($"reformer: {TerminalText.Line($"{directory}: {message}")}");
            return new CaseVerdict(Path.GetFileName(Path.GetFullPath(directory).TrimEnd('/')), [], message);
        }
    }

    private static JsonObject ToJson(CaseVerdict verdict)
    {
        var item = new JsonObject
        {
            ["case"] = verdict.Case,
            ["passed"] = verdict.Passed,
            ["tensors"] = new JsonArray([.. verdict.Tensors.Select(tensor => new JsonObject
            {
                ["name"] = tensor.Name,
                ["relative"] = tensor.Relative is double relative ? Output.Number(relative) : null,
                ["limit"] = tensor.Limit,
                ["passed"] = tensor.Passed,
            })]),
        };
        if (verdict.Error is not null)
        {
            item["error"] = verdict.Error;
        }

        return item;
    }

    private static void Print(CaseVerdict verdict)
    {
        Console.WriteLine($"{verdict.Case}: {(verdict.Passed ? "passed" : "FAILED")}");

        // A file of other things has thousands of tensors that mean nothing here; a few show what it is.
        TensorVerdict[] shown =
        [
            .. verdict.Tensors.Where(tensor => tensor.Relative is not null),
            .. verdict.Tensors.Where(tensor => tensor.Relative is null).Take(NotComparableShown),
        ];
        Output.Table(["  tensor", "relative", "limit", ""], shown.Select(tensor => (string[])
        [
            "  " + TerminalText.Line(tensor.Name),
            tensor.Relative is double relative ? Output.Text($"{relative:0.0e+00}") : "not comparable",
            Output.Text($"{tensor.Limit:0.0e+00}"),
            tensor.Passed ? "" : "FAILED",
        ]));
        if (verdict.Tensors.Count > shown.Length)
        {
            Console.WriteLine(
                Output.Text($"  and {verdict.Tensors.Count - shown.Length} more that nothing here compares with"));
        }

        Console.WriteLine();
    }
}
