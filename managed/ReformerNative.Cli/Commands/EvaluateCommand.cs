using System.CommandLine;
using System.Text.Json.Nodes;
using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Cli.Commands;

/// <summary><c>reformer evaluate</c>.</summary>
internal static class EvaluateCommand
{
    private static readonly Argument<string> Checkpoint = new("CHECKPOINT")
    {
        Description = "A checkpoint, or the directory of a run",
    };
    private static readonly Option<string?> Task = CommonOptions.Word(
        "--task", "Kind of data [default: that of the run]", "text", "duplicate");
    private static readonly Option<string[]> Data = new("--data")
    {
        Description = "Files and folders of text [default: those of the run]",
        HelpName = "PATH",
        AllowMultipleArgumentsPerToken = true,
    };

    private static readonly Option<int?> Symbols = CommonOptions.Maybe(
        "--symbols", "Duplication: number of symbols", 1);
    private static readonly Option<int?> Length = CommonOptions.Maybe(
        "--length", "Tokens of an example [default: that of the run]", 2);
    private static readonly Option<int?> Batch = CommonOptions.Maybe(
        "--batch", "Examples of a batch [default: that of the run]", 1);
    private static readonly Option<int?> Batches = CommonOptions.Maybe(
        "--batches", "Batches to measure on [default: as many as in the run]", 1);
    private static readonly Option<string?> Rounds = new("--rounds")
    {
        Description =
            "Hash rounds to measure with, several with commas, full for full attention [default: those of the model]",
        HelpName = "N,full,...",
    };

    private static readonly Option<long?> Seed = CommonOptions.Maybe(
        "--seed", "Seed of data and rotations [default: that of the run]", 0L);

    public static Command Create()
    {
        var command = new Command(
            "evaluate", "Measure the held-out loss of a checkpoint, with any number of hash rounds.")
        {
            Checkpoint, Task, Data, CommonOptions.AnyBytes, Symbols, Length, Batch, Batches, Rounds, Seed,
            CommonOptions.Device, CommonOptions.Precision, CommonOptions.Threads, CommonOptions.Json,
        };
        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult parsed)
    {
        string checkpoint = CheckpointStore.Resolve(parsed.GetRequiredValue(Checkpoint));
        RunDescription? run =
            RunDescription.Find(parsed.GetRequiredValue(Checkpoint)) ?? RunDescription.Find(checkpoint);
        DataDescription data = ChooseData(parsed, run);
        TrainingOptions defaults =
            run?.Options ?? (data.Task == DataTask.Text ? TrainingDefaults.Text : TrainingDefaults.Duplication);
        EvaluationMode[]? modes = parsed
            .GetValue(Rounds)
            ?.Split(',', StringSplitOptions.TrimEntries)
            .Select(EvaluationMode.Parse)
            .ToArray();
        int length = parsed.GetValue(Length) ?? defaults.Length;
        int batch = parsed.GetValue(Batch) ?? defaults.BatchSize;
        int batches = parsed.GetValue(Batches) ?? defaults.EvaluationBatches;
        ulong seed = (ulong?)parsed.GetValue(Seed) ?? defaults.Seed;
        IBatchSource source = data.Open(
            anyBytes: parsed.GetValue(CommonOptions.AnyBytes) || ReferenceEquals(data, run?.Data));
        using var disposable = source as IDisposable;
        using ReformerContext context = CommonOptions.Context(parsed);
        using ReformerModel model = ReformerModel.Load(checkpoint, context, logger: new ErrorLog());
        if (!model.Config.PredictsNextToken)
        {
            // The labels of text are its own next tokens: another head would be measured by what it sees.
            throw new NotSupportedException(
                $"{checkpoint}: expected a causal language model, found one for {model.Config.Task}");
        }

        var heldOut = new TokenBatch(batch, length);
        using var interruption = new Interruption();
        foreach (EvaluationMode mode in modes ?? [new EvaluationMode(model.Config.NumHashes)])
        {
            LossResult loss = HeldOutLoss.Measure(
                model, source, heldOut, batches, mode.Options(seed), interruption.Token);
            if (parsed.GetValue(CommonOptions.Json))
            {
                Output.Json(new JsonObject
                {
                    ["rounds"] = mode.Rounds is int rounds ? rounds : "full",
                    ["heldout_loss"] = Output.Number(loss.Loss),
                    ["heldout_bits_per_byte"] = Output.Number(loss.Bits),
                    ["heldout_accuracy"] = Output.Number(loss.Accuracy),
                    ["tokens"] = loss.Count,
                });
            }
            else
            {
                Console.WriteLine(Output.Text($"rounds {mode.Name,-5} {loss.Bits,8:F4} bits per {data.Unit}   ")
                    + Output.Text($"accuracy {100 * loss.Accuracy,7:F3} %   over {loss.Count:N0} {data.Unit}s"));
            }
        }

        return ExitCode.Done;
    }

    private static DataDescription ChooseData(ParseResult parsed, RunDescription? run)
    {
        string[] paths = parsed.GetValue(Data) ?? [];
        DataTask task = parsed.GetValue(Task) is { } named ? Enum.Parse<DataTask>(named, ignoreCase: true)
            : paths.Length > 0 ? DataTask.Text
            : run?.Data.Task ?? DataTask.Text;
        if (task == DataTask.Duplicate)
        {
            return paths.Length == 0
                ? DataDescription.Duplicate(
                    parsed.GetValue(Symbols) ?? run?.Data.Symbols ?? DataDescription.PaperSymbols)
                : throw new UsageException("--data: expected none with --task duplicate, which makes its own");
        }

        return paths.Length > 0 ? DataDescription.Text(paths)
            : run?.Data.Task == DataTask.Text ? run.Data
            : throw new UsageException(
                "--data: expected files or folders of text, as the checkpoint is of no run on text, found none");
    }
}
