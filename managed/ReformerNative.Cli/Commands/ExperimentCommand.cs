using System.CommandLine;
using System.Text.Json.Nodes;
using ReformerNative.Model;
using ReformerNative.Tensors;

namespace ReformerNative.Cli.Commands;

/// <summary><c>reformer experiment</c>.</summary>
internal static class ExperimentCommand
{
    private static readonly Option<string> Train = new("--train")
    {
        Description = "Attention to train with: hash rounds, full for full attention",
        DefaultValueFactory = _ => "full,4,2,1",
        HelpName = "N,full,...",
    };

    private static readonly Option<string> Evaluate = new("--evaluate")
    {
        Description = "Attention to evaluate each model with",
        DefaultValueFactory = _ => "full,8,4,2,1",
        HelpName = "N,full,...",
    };

    private static readonly Option<string> Stages = new("--stages")
    {
        Description = "Lengths to train at, one after the other; the last is the length of the evaluation",
        DefaultValueFactory = _ => "128x32x150,256x16x150,512x8x250,1024x8x1000",
        HelpName = "LENGTHxBATCHxSTEPS,...",
    };

    private static readonly Option<int> Symbols = CommonOptions.Number(
        "--symbols", "Number of symbols", DataDescription.PaperSymbols, 1);
    private static readonly Option<int> Chunk = CommonOptions.Number(
        "--chunk", "Tokens of a chunk", ReformerPresets.Duplication.LshAttnChunkLength, 1);

    private static readonly Option<double> Rate = CommonOptions.Number(
        "--lr", "Largest learning rate", TrainingDefaults.Duplication.LearningRate, 0.0, "X");

    private static readonly Option<int> Examples = CommonOptions.Number(
        "--examples", "Sequences of an evaluation", 64, 1);
    private static readonly Option<string> Out = new("--out")
    {
        Description = "Directory of the experiment; what lies there is gone on with",
        DefaultValueFactory = _ => "runs/experiment-duplicate",
        HelpName = "DIR",
    };

    public static Command Create()
    {
        var duplicate = new Command(
            "duplicate",
            "The paper's table 2: models of the duplication task trained with full attention or some hash rounds, each "
                + "evaluated with others. "
            + "Ctrl+C stops it; the same command goes on.")
        {
            Train, Evaluate, Stages, Symbols, Chunk, Rate, Examples, Out, CommonOptions.Seed, CommonOptions.Device,
            CommonOptions.Precision, CommonOptions.Threads, CommonOptions.Json,
        };
        duplicate.SetAction(RunDuplicate);
        return new Command("experiment", "Repeat an experiment of the paper.") { duplicate };
    }

    private static int RunDuplicate(ParseResult parsed)
    {
        EvaluationMode[] trained = Modes(parsed.GetValue(Train)!);
        EvaluationMode[] evaluated = Modes(parsed.GetValue(Evaluate)!);
        Stage[] stages = [.. parsed.GetValue(Stages)!.Split(',', StringSplitOptions.TrimEntries).Select(Stage.Parse)];
        var experiment = new DuplicateExperiment(
            parsed.GetValue(Out)!, stages, parsed.GetValue(Symbols), parsed.GetValue(Chunk), parsed.GetValue(Rate),
            CommonOptions.SeedOf(parsed));
        bool json = parsed.GetValue(CommonOptions.Json);
        using ReformerContext context = CommonOptions.Context(parsed);
        using var interruption = new Interruption();
        var rows = new List<IReadOnlyList<string>>();
        foreach (EvaluationMode mode in trained)
        {
            string? checkpoint = experiment.Train(mode, context, new ProgressLine(json), interruption.Token);
            if (checkpoint is null)
            {
                Console.Error.WriteLine("stopped; the same command goes on from here");
                return ExitCode.Done;
            }

            var accuracy = new Dictionary<EvaluationMode, double>();
            foreach (EvaluationMode other in evaluated)
            {
                accuracy[other] = experiment.Evaluate(
                    checkpoint, other, parsed.GetValue(Examples), context, interruption.Token);
            }

            rows.Add([Title(mode), .. evaluated.Select(other => Percent(100 * accuracy[other]))]);
            rows.Add(["  paper", .. evaluated.Select(other => Percent(DuplicateExperiment.Paper(mode, other)))]);
            if (json)
            {
                Output.Json(ToJson(mode, checkpoint, evaluated, accuracy));
            }
        }

        if (!json)
        {
            Console.WriteLine();
            Console.WriteLine(Output.Text($"accuracy in % over the second half, length {stages[^1].Length}"));
            Output.Table(["trained \\ evaluated", .. evaluated.Select(Title)], rows);
        }

        return ExitCode.Done;
    }

    private static JsonObject ToJson(
        EvaluationMode mode, string checkpoint, EvaluationMode[] evaluated, Dictionary<EvaluationMode, double> accuracy)
    {
        var found = new JsonObject();
        var paper = new JsonObject();
        foreach (EvaluationMode other in evaluated)
        {
            found[other.Name] = accuracy[other];
            paper[other.Name] = DuplicateExperiment.Paper(mode, other) is double percent ? percent / 100 : null;
        }

        return new JsonObject
        {
            ["trained"] = mode.Name,
            ["checkpoint"] = checkpoint,
            ["accuracy"] = found,
            ["paper"] = paper,
        };
    }

    private static string Percent(double? value) => value is double percent ? Output.Text($"{percent:F1}") : "-";

    private static EvaluationMode[] Modes(string text) =>
        [.. text.Split(',', StringSplitOptions.TrimEntries).Select(EvaluationMode.Parse)];

    private static string Title(EvaluationMode mode) =>
        mode.Rounds is int rounds ? Output.Text($"LSH-{rounds}") : "full";
}

/// <summary>A part of a curriculum.</summary>
/// <param name="Length">Tokens of an example.</param>
/// <param name="Batch">Examples of a batch.</param>
/// <param name="Steps">Steps.</param>
internal sealed record Stage(int Length, int Batch, int Steps)
{
    public static Stage Parse(string text)
    {
        int[] numbers =
        [
            .. text.Split('x')
                .Select(part => CommonOptions.TryParse(part, 1, out int number) ? number : 0),
        ];
        return numbers is [>= 4, >= 1, >= 1] && numbers[0] % 2 == 0
            ? new Stage(numbers[0], numbers[1], numbers[2])
            : throw new UsageException(
                $"--stages: expected LENGTHxBATCHxSTEPS with an even length from 4 up, found '{text}'");
    }
}
