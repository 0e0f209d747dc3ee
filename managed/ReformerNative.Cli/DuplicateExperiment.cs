using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Cli;

/// <summary>
/// Models of the duplication task in one directory: one folder a model, in it one run for each stage.
/// </summary>
internal sealed class DuplicateExperiment(
    string directory, IReadOnlyList<Commands.Stage> stages, int symbols, int chunk, double learningRate, ulong seed)
{
    private const int LogEvery = 20;
    private const int EvaluationBatch = 8;

    private static readonly string[] PaperColumns = ["full", "8", "4", "2", "1"];

    /// <summary>Accuracies in % of table 2 of Kitaev, Kaiser and Levskaya, ICLR 2020.</summary>
    private static readonly Dictionary<string, double[]> PaperRows = new()
    {
        ["full"] = [100, 94.8, 92.5, 76.9, 52.5],
        ["4"] = [0.8, 100, 99.9, 99.4, 91.9],
        ["2"] = [0.8, 100, 99.9, 98.1, 86.8],
        ["1"] = [0.8, 99.9, 99.6, 94.8, 77.9],
    };

    private readonly DuplicationTask _task = new(symbols);

    /// <summary>The paper's accuracy in %; null where it has none.</summary>
    public static double? Paper(EvaluationMode trained, EvaluationMode evaluated)
    {
        int column = Array.IndexOf(PaperColumns, evaluated.Name);
        return column >= 0 && PaperRows.TryGetValue(trained.Name, out double[]? row) ? row[column] : null;
    }

    /// <summary>Trains a model through all stages, going on from what is there.</summary>
    /// <returns>Its last checkpoint; null when it was interrupted.</returns>
    public string? Train(
        EvaluationMode mode, ReformerContext context, ProgressLine line, CancellationToken cancellation)
    {
        string? checkpoint = null;
        for (int i = 0; i < stages.Count; i++)
        {
            Commands.Stage stage = stages[i];
            string folder = Path.Combine(
                directory, $"trained-{mode.Name}", Output.Text($"stage-{i + 1}-length-{stage.Length}"));
            string? newest = CheckpointStore.List(folder).Select(item => item.Path).LastOrDefault();
            TrainingOptions options = TrainingDefaults.Duplication with
            {
                Seed = seed + (ulong)i,
                Steps = stage.Steps,
                BatchSize = stage.Batch,
                Length = stage.Length,
                LearningRate = learningRate,
                WarmupSteps = Math.Min(TrainingDefaults.Duplication.WarmupSteps, stage.Steps),
                EvaluateEvery = 0,
                CheckpointEvery = 100,
                KeepCheckpoints = 1,
                FullAttention = mode.Rounds is null,
                CheckpointDirectory = folder,
            };
            using ReformerModel model = newest is not null ? ReformerModel.Load(newest, context)
                : checkpoint is not null ? ReformerModel.Load(checkpoint, context, WithOpenBuckets)
                : ReformerModel.Create(Config(mode), context, seed);
            using Trainer trainer = newest is not null
                ? Trainer.Resume(model, newest, _task, options)
                : new Trainer(model, _task, options);
            TrainingResult result = trainer.Run(
                new Report(line, options, context, $"trained with {mode.Name}, length {stage.Length}: "), cancellation);
            line.Clear();
            if (!result.Completed)
            {
                return null;
            }

            checkpoint = CheckpointStore.Resolve(folder);
        }

        return checkpoint;
    }

    /// <summary>Accuracy over the second half, 0 to 1.</summary>
    public double Evaluate(
        string checkpoint, EvaluationMode mode, int examples, ReformerContext context, CancellationToken cancellation)
    {
        using ReformerModel model = ReformerModel.Load(checkpoint, context, WithOpenBuckets);
        var batch = new TokenBatch(Math.Min(examples, EvaluationBatch), stages[^1].Length);
        int batches = (examples + batch.BatchSize - 1) / batch.BatchSize;
        return HeldOutLoss.Measure(model, _task, batch, batches, mode.Options(seed), cancellation).Accuracy;
    }

    /// <summary>The number of buckets follows from the length of a stage, so it is chosen anew for each.</summary>
    private static ReformerConfig WithOpenBuckets(ReformerConfig config) => config with { NumBuckets = null };

    private ReformerConfig Config(EvaluationMode mode) => ReformerPresets.Duplication with
    {
        LshAttnChunkLength = chunk,
        MaxPositionEmbeddings = stages.Max(stage => stage.Length),
        NumHashes = mode.Rounds ?? ReformerPresets.Duplication.NumHashes,
        VocabSize = symbols + 1,
    };

    private sealed class Report(ProgressLine line, TrainingOptions options, ReformerContext context, string prefix)
        : IProgress<TrainingStep>
    {
        private readonly StepAverages _averages = new(options, DataTask.Duplicate, new MemoryUse(context));

        void IProgress<TrainingStep>.Report(TrainingStep value)
        {
            _averages.Add(value);
            if (line.IsLive)
            {
                line.Show(prefix + _averages.Line(value));
            }

            if (!line.IsLive ? value.Step % LogEvery == 0 : value.Step == options.Steps)
            {
                line.Keep(prefix + _averages.Line(value));
            }
        }
    }
}
