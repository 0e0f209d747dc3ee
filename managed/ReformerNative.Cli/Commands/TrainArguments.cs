using System.CommandLine;
using ReformerNative.Checkpoints;
using ReformerNative.Model;
using ReformerNative.Training;

namespace ReformerNative.Cli.Commands;

/// <summary>The options of <c>reformer train</c>, and the run and the model that they mean.</summary>
internal static class TrainArguments
{
    private static readonly Option<string?> Task = CommonOptions.Word(
        "--task", "What to learn: text (the default), or the paper's duplication task", "text", "duplicate");

    private static readonly Option<string[]> Data = new("--data")
    {
        Description = "Files and folders of text; without it, the API documentation of the .NET SDK",
        HelpName = "PATH",
        AllowMultipleArgumentsPerToken = true,
    };

    private static readonly Option<string?> Config = new("--config")
    {
        Description = "A model's config.json",
        HelpName = "FILE",
    };
    private static readonly Option<string?> Preset = CommonOptions.Word(
        "--preset", "A ready model, instead of --config", [.. ReformerPresets.Names]);
    private static readonly Option<int?> Rounds = CommonOptions.Maybe(
        "--rounds", "Hash rounds of LSH layers, instead of the configuration's", 1);
    private static readonly Option<bool> Full = new("--full-attention")
    {
        Description = "LSH layers attend to the whole sequence while training",
    };
    private static readonly Option<int?> Length = CommonOptions.Maybe("--length", "Tokens of an example", 2);
    private static readonly Option<int?> Batch = CommonOptions.Maybe("--batch", "Examples of a batch", 1);
    private static readonly Option<int> Accumulate = CommonOptions.Number(
        "--accumulate", "Batches whose gradients make one step", 1, 1);
    private static readonly Option<long?> Steps = CommonOptions.Maybe(
        "--steps", "Steps in all, those before a resumption included", 0L);
    private static readonly Option<double?> Rate = CommonOptions.Maybe("--lr", "Largest learning rate", 0.0, "X");
    private static readonly Option<long?> Warmup = CommonOptions.Maybe(
        "--warmup", "Steps in which the rate rises to it", 0L);
    private static readonly Option<string?> Schedule = CommonOptions.Word(
        "--schedule", "The rate afterwards", "constant", "linear", "cosine", "rsqrt");

    private static readonly Option<string?> OptimizerName = CommonOptions.Word(
        "--optimizer", "The update rule", "adamw", "adafactor");
    private static readonly Option<double> Decay = CommonOptions.Number(
        "--weight-decay", "Decoupled weight decay", 0.0, 0.0, "X");
    private static readonly Option<double> Clip = CommonOptions.Number(
        "--clip", "Largest global norm of the gradients, 0 for any", 1.0, 0.0, "X");
    private static readonly Option<int> Symbols = CommonOptions.Number(
        "--symbols", "Duplication: number of symbols", DataDescription.PaperSymbols, 1);

    private static readonly Option<double> HeldOut = CommonOptions.Number(
        "--held-out", "Text: part of each file that is only measured on, 0 for none", DataDescription.UsualHeldOut, 0.0,
        "X");

    private static readonly Option<long?> EvaluateEvery = CommonOptions.Maybe(
        "--evaluate-every", "Steps between held-out measurements, 0 for the end alone", 0L);

    private static readonly Option<int?> EvaluationBatches = CommonOptions.Maybe(
        "--evaluation-batches", "Batches of a held-out measurement", 1);
    private static readonly Option<long?> CheckpointEvery = CommonOptions.Maybe(
        "--checkpoint-every", "Steps between checkpoints, 0 for the end alone", 0L);

    public static readonly Option<long> LogEvery = CommonOptions.Number(
        "--log-every", "Steps between printed lines", 10L, 1L);
    private static readonly Option<string?> Out = new("--out")
    {
        Description = "Directory of the run [default: runs/TASK-N]",
        HelpName = "DIR",
    };
    public static readonly Option<string?> Resume = new("--resume")
    {
        Description = "Go on with a run: its directory, or one of its checkpoints",
        HelpName = "DIR",
    };

    public static readonly Option<int> SampleBytes = CommonOptions.Number(
        "--sample", "Text: bytes to generate at the end, 0 for none", 200, 0);

    /// <summary>In the order of the help.</summary>
    public static IReadOnlyList<Option> All { get; } =
    [
        Task, Data, CommonOptions.AnyBytes, Config, Preset, Rounds, Full, Length, Batch, Accumulate, Steps, Rate,
        Warmup, Schedule, OptimizerName, Decay, Clip, Symbols, HeldOut, EvaluateEvery, EvaluationBatches,
        CheckpointEvery, LogEvery, Out, Resume, SampleBytes, CommonOptions.Seed, CommonOptions.Memory,
        CommonOptions.Device, CommonOptions.Precision, CommonOptions.Threads, CommonOptions.Json,
    ];

    /// <summary>What makes a run what it is, and so cannot change when it goes on.</summary>
    private static readonly Option[] Fixed =
    [
        Task, Config, Preset, Rounds, Full, Length, Batch, Accumulate, Rate, Warmup, Schedule, OptimizerName, Decay,
        Clip, Symbols, HeldOut, CommonOptions.Seed,
    ];

    /// <summary>What a new run is to be.</summary>
    public static RunDescription NewRun(ParseResult parsed)
    {
        DataTask task = parsed.GetValue(Task) == "duplicate" ? DataTask.Duplicate : DataTask.Text;
        string[] paths = parsed.GetValue(Data) ?? [];
        if (task == DataTask.Duplicate && paths.Length > 0)
        {
            throw new UsageException("--data: expected none with --task duplicate, which makes its own");
        }

        double heldOut = parsed.GetValue(HeldOut);
        if (heldOut >= 1)
        {
            throw new UsageException(Output.Text($"--held-out: expected 0 <= part < 1, found {heldOut}"));
        }

        DataDescription data = (
            task == DataTask.Duplicate ? DataDescription.Duplicate(parsed.GetValue(Symbols))
            : paths.Length > 0 ? DataDescription.Text(paths)
            : DataDescription.Documentation()) with
        { HeldOut = heldOut };
        TrainingOptions defaults = task == DataTask.Text ? TrainingDefaults.Text : TrainingDefaults.Duplication;
        long steps = parsed.GetValue(Steps) ?? defaults.Steps;
        TrainingOptions options = defaults with
        {
            Seed = CommonOptions.SeedOf(parsed),
            Steps = steps,
            BatchSize = parsed.GetValue(Batch) ?? defaults.BatchSize,
            Length = parsed.GetValue(Length) ?? defaults.Length,
            AccumulationSteps = parsed.GetValue(Accumulate),
            Optimizer = Enum.Parse<OptimizerKind>(
                parsed.GetValue(OptimizerName) ?? defaults.Optimizer.ToString(), ignoreCase: true),
            LearningRate = parsed.GetValue(Rate) ?? defaults.LearningRate,
            WarmupSteps = parsed.GetValue(Warmup) ?? Math.Min(defaults.WarmupSteps, Math.Max(1, steps / 10)),
            Schedule = Enum.Parse<LearningRateSchedule>(
                parsed.GetValue(Schedule) ?? defaults.Schedule.ToString(), ignoreCase: true),
            WeightDecay = parsed.GetValue(Decay),
            MaxGradientNorm = parsed.GetValue(Clip),
            FullAttention = parsed.GetValue(Full),
        };
        options = WithIntervals(parsed, options, data) with
        {
            CheckpointDirectory = parsed.GetValue(Out), // null: the next free one, once all else is known to be well
        };
        if (options.CheckpointDirectory is { } chosen
            && data.Paths.Any(path => Path.TrimEndingDirectorySeparator(path)
                == Path.TrimEndingDirectorySeparator(Path.GetFullPath(chosen))))
        {
            throw new UsageException($"--out: expected a directory other than that of the data, found {chosen}");
        }

        return task == DataTask.Text || options.Length % 2 == 0
            ? new RunDescription(data, Failure.Usage(() => Checked(options)))
            : throw new UsageException(
                $"--length: expected an even number with --task duplicate, found {options.Length}");
    }

    /// <summary>What a run is that goes on from a checkpoint, with the intervals that the command line names.</summary>
    public static RunDescription ResumedRun(ParseResult parsed, string checkpoint)
    {
        if (Fixed.FirstOrDefault(option => CommonOptions.IsGiven(parsed, option)) is { } option)
        {
            throw new UsageException($"{option.Name}: expected none with --resume, the run goes on as it began");
        }

        RunDescription run =
            RunDescription.Find(parsed.GetValue(Resume)!)
            ?? RunDescription.Find(checkpoint)
            ?? throw new FileNotFoundException(
                $"{checkpoint}: expected run.json in it or in the directory above, found none");
        if (parsed.GetValue(Data) is { Length: > 0 } moved)
        {
            run = run with { Data = run.Data with { Paths = [.. moved.Select(Path.GetFullPath)] } };
        }

        TrainingOptions options = WithIntervals(parsed, run.Options, run.Data) with
        {
            Steps = parsed.GetValue(Steps) ?? run.Options.Steps,
            CheckpointDirectory = parsed.GetValue(Out) ?? DirectoryOf(checkpoint),
        };
        return run with { Options = Failure.Usage(() => Checked(options)) };
    }

    /// <summary>The run's directory: that of a checkpoint named step-*, else the checkpoint itself.</summary>
    private static string DirectoryOf(string checkpoint)
    {
        string parent = Path.GetDirectoryName(Path.GetFullPath(checkpoint))!;
        string place = Path.GetFullPath(checkpoint);
        return CheckpointStore.List(parent).Any(item => Path.GetFullPath(item.Path) == place) ? parent : checkpoint;
    }

    private static TrainingOptions WithIntervals(ParseResult parsed, TrainingOptions options, DataDescription data)
    {
        long? every = parsed.GetValue(EvaluateEvery);
        if (every > 0 && !data.HasHeldOut)
        {
            throw new UsageException(
                $"--evaluate-every: expected 0 where no text is held out (--held-out 0), found {every}");
        }

        return options with
        {
            EvaluateEvery = data.HasHeldOut ? every ?? options.EvaluateEvery : 0,
            EvaluationBatches = parsed.GetValue(EvaluationBatches) ?? options.EvaluationBatches,
            CheckpointEvery = parsed.GetValue(CheckpointEvery) ?? options.CheckpointEvery,
        };
    }

    private static TrainingOptions Checked(TrainingOptions options)
    {
        options.Validate();
        return options;
    }

    /// <summary>The configuration of a new run's model: a file's, or a ready one that fits the data.</summary>
    public static ReformerConfig ConfigOf(ParseResult parsed, RunDescription run)
    {
        string? file = parsed.GetValue(Config);
        string? preset = parsed.GetValue(Preset);
        if (file is not null && preset is not null)
        {
            throw new UsageException("--preset: expected none beside --config");
        }

        ReformerConfig config = file is not null ? ReformerConfig.Load(file)
            : ReformerPresets.FromName(preset ?? (run.Data.Task == DataTask.Text ? "text" : "duplication"));
        if (parsed.GetValue(Rounds) is int rounds)
        {
            config = config with { NumHashes = rounds };
        }

        if (run.Data.Task == DataTask.Duplicate
            && run.Data.Symbols >= config.VocabSize
            && file is null
            && preset is null)
        {
            config = config with { VocabSize = run.Data.Symbols + 1 };
        }

        return config.PositionLimit is not long limit || run.Options.Length <= limit
            ? config
            : throw new UsageException(
                $"--length: expected at most the {limit} positions of the model, found {run.Options.Length}");
    }
}
