using System.CommandLine;
using System.Diagnostics;
using System.Text.Json.Nodes;
using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Tensors;

namespace ReformerNative.Cli.Commands;

/// <summary><c>reformer generate</c>.</summary>
internal static class GenerateCommand
{
    private static readonly Argument<string> Checkpoint = new("CHECKPOINT")
    {
        Description = "A checkpoint, or the directory of a run",
    };
    private static readonly Option<string?> Prompt = new("--prompt")
    {
        Description = "Text to continue (byte-level models)",
        HelpName = "TEXT",
    };
    private static readonly Option<string?> PromptFile = new("--prompt-file")
    {
        Description = "A file with the text to continue",
        HelpName = "FILE",
    };
    private static readonly Option<string?> Ids = new("--ids")
    {
        Description = "Ids to continue, with commas; prints ids",
        HelpName = "N,...",
    };
    private static readonly Option<int> Count = CommonOptions.Number(
        "--count", "Tokens to make at most; fewer when eos_token_id ends the text", 256, 1);
    private static readonly Option<float> Temperature = CommonOptions.Number(
        "--temperature", "Divides the logits, 0 for the likeliest", 0.8f, 0f, "X");

    private static readonly Option<int> TopK = CommonOptions.Number(
        "--top-k", "Draw among so many likeliest tokens, 0 for all", 0, 0);
    private static readonly Option<float> TopP = CommonOptions.Number(
        "--top-p", "Then among the likeliest whose probabilities sum to this", 1f, 0f, "P");

    private static readonly Option<int?> Rounds = CommonOptions.Maybe(
        "--rounds", "Hash rounds [default: those of the model]", 1);
    private static readonly Option<int?> Window = CommonOptions.Maybe(
        "--context", "Tokens that the model sees at most [default: its positions]", 1);

    private static readonly Option<string?> Cache = CommonOptions.Word(
        "--cache", "Keep what earlier tokens gave: where it is exact, always, never [default: auto]", "auto", "on",
        "off");

    public static Command Create()
    {
        var command = new Command("generate", "Continue a text with a trained model.")
        {
            Checkpoint, Prompt, PromptFile, Ids, Count, Temperature, TopK, TopP, Rounds, Window, Cache,
            CommonOptions.Seed, CommonOptions.Device, CommonOptions.Precision, CommonOptions.Threads,
            CommonOptions.Json,
        };
        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult parsed)
    {
        float topP = parsed.GetValue(TopP);
        if (!(topP > 0 && topP <= 1))
        {
            throw new UsageException(Output.Text($"--top-p: expected 0 < p <= 1, found {topP}"));
        }

        var options = new GenerationOptions
        {
            Count = parsed.GetValue(Count),
            Temperature = parsed.GetValue(Temperature),
            TopK = parsed.GetValue(TopK),
            TopP = topP,
            Seed = CommonOptions.SeedOf(parsed),
            Rounds = parsed.GetValue(Rounds),
            Context = parsed.GetValue(Window),
            Cache = Enum.Parse<CacheUse>(parsed.GetValue(Cache) ?? "auto", ignoreCase: true),
        };
        string checkpoint = CheckpointStore.Resolve(parsed.GetRequiredValue(Checkpoint));
        using ReformerContext context = CommonOptions.Context(parsed);
        var log = new ErrorLog(Console.IsOutputRedirected ? "" : "\n"); // it may come in the middle of the text
        using ReformerModel model = ReformerModel.Load(checkpoint, context, logger: log);
        bool bytes = parsed.GetValue(Ids) is null;
        int[] prompt = ReadPrompt(parsed, model.Config);
        using var generator = new Generator(model);
        using var interruption = new Interruption();
        bool json = parsed.GetValue(CommonOptions.Json);
        var made = new List<int>();
        var text = new TextStream(Console.Out);
        long started = Stopwatch.GetTimestamp();
        if (!json)
        {
            Console.Write(bytes ? TerminalText.Printable(ByteVocabulary.Decode(prompt)) : string.Join(',', prompt));
        }

        int? end = model.Config.EosTokenId;
        foreach (int id in generator.Generate(prompt, options with { EndToken = end }, interruption.Token))
        {
            made.Add(id);
            if (json || (bytes && id == end))
            {
                continue; // the end of a text is no part of the text
            }

            if (bytes)
            {
                text.Write(id);
            }
            else
            {
                Console.Write(Output.Text($",{id}"));
            }
        }

        if (json)
        {
            var item = new JsonObject { ["ids"] = new JsonArray([.. made.Select(id => (JsonNode)id)]) };
            if (bytes)
            {
                item["text"] = System.Text.Encoding.UTF8.GetString(
                    ByteVocabulary.Decode([.. made.Where(id => id != end)]));
            }

            item["tokens_per_second"] = made.Count / Stopwatch.GetElapsedTime(started).TotalSeconds;
            Output.Json(item);
        }
        else
        {
            text.Flush();
            Console.WriteLine();
        }

        return ExitCode.Done;
    }

    private static int[] ReadPrompt(ParseResult parsed, ReformerConfig config)
    {
        string? text = parsed.GetValue(Prompt);
        string? file = parsed.GetValue(PromptFile);
        string? ids = parsed.GetValue(Ids);
        if (new[] { text, file, ids }.Count(given => given is not null) != 1)
        {
            throw new UsageException("expected one of --prompt, --prompt-file and --ids");
        }

        if (ids is not null)
        {
            return
            [
                .. ids.Split(',', StringSplitOptions.TrimEntries)
                    .Select(item =>
                        CommonOptions.TryParse(item, 0, out int id) && id < config.VocabSize
                            ? id
                            : throw new UsageException(
                                $"--ids: expected integers of 0 .. {config.VocabSize - 1}, found '{item}'")
                    ),
            ];
        }

        if (config.VocabSize != ByteVocabulary.Size)
        {
            throw new UsageException(
                $"--prompt: expected a byte-level model of {ByteVocabulary.Size} ids, found {config.VocabSize}; give "
                    + "--ids"
            );
        }

        byte[] bytes = file is not null ? File.ReadAllBytes(file) : System.Text.Encoding.UTF8.GetBytes(text!);
        int[] prompt = new int[bytes.Length];
        ByteVocabulary.Encode(bytes, prompt);
        return prompt.Length > 0 ? prompt : [ByteVocabulary.EndOfText];
    }
}
