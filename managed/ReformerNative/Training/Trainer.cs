using System.Diagnostics;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Abstractions;
using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;

namespace ReformerNative.Training;

/// <summary>
/// Trains a model. Data, dropout and rotations of a step are functions of (seed, step), and a checkpoint has parameters
/// and optimizer state to the bit, so a resumed run ends with the bits of an uninterrupted one. The caller disposes the
/// trainer; the model and the data stay. One thread at a time.
/// </summary>
public sealed class Trainer : IDisposable
{
    private const string OptimizerFile = "optimizer.safetensors";

    private readonly IBatchSource _source;
    private readonly ILogger _logger;
    private readonly Optimizer _optimizer;
    private readonly TokenBatch _batch;
    private long _tokens;
    private long _savedStep; // the last one that is in a checkpoint

    /// <summary>Prepares a run from its first step.</summary>
    /// <param name="model">The model to train; it must live as long as the trainer.</param>
    /// <param name="source">The data.</param>
    /// <param name="options">The options.</param>
    /// <param name="logger">Takes messages; null for none.</param>
    /// <exception cref="ArgumentException">
    /// An option is impossible, the data has more ids than the model, or the memory budget is less than training takes
    /// at least.
    /// </exception>
    /// <exception cref="InvalidOperationException">The checkpoint directory already has checkpoints.</exception>
    public Trainer(ReformerModel model, IBatchSource source, TrainingOptions options, ILogger? logger = null)
        : this(model, source, options, logger, resuming: false)
    {
    }

    private Trainer(ReformerModel model, IBatchSource source, TrainingOptions options, ILogger? logger, bool resuming)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(source);
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        if (source.VocabularySize > model.Config.VocabSize)
        {
            throw new ArgumentException(
                $"data: expected at most the {model.Config.VocabSize} ids of the model, found {source.VocabularySize}",
                nameof(source));
        }

        if (!resuming
            && options.CheckpointDirectory is { } directory
            && CheckpointStore.List(directory) is [.., var newest])
        {
            throw new InvalidOperationException(
                $"{directory}: expected no checkpoints for a new run, found {newest.Path}; resume it or choose another "
                    + "directory"
            );
        }

        Model = model;
        Options = options;
        _source = source;
        _logger = logger ?? NullLogger.Instance;
        model.ResolveBuckets(options.Length);
        Kept = options.MemoryBudget is null ? null : MemoryPlan.ForTraining(model.Config, model.Context, options).Kept;
        _batch = new TokenBatch(options.BatchSize, options.Length);
        _optimizer = new Optimizer(model, options);
    }

    /// <summary>The model.</summary>
    public ReformerModel Model { get; }

    /// <summary>The options.</summary>
    public TrainingOptions Options { get; }

    /// <summary>What each layer keeps within the memory budget; null without one, for nothing.</summary>
    public IReadOnlyList<KeepActivations>? Kept { get; }

    /// <summary>Steps done, over all resumptions.</summary>
    public long Step { get; private set; }

    /// <summary>
    /// Goes on with a run. The model must be the checkpoint's, loaded with <see cref="ReformerModel.Load"/>.
    /// </summary>
    /// <param name="model">The model.</param>
    /// <param name="checkpoint">Directory of the checkpoint.</param>
    /// <param name="source">The data of the run.</param>
    /// <param name="options">
    /// The options of the run; null for those in the checkpoint. Steps, intervals, memory budget and directory may
    /// differ, nothing else.
    /// </param>
    /// <param name="logger">Takes messages; null for none.</param>
    /// <returns>A trainer that the caller disposes.</returns>
    /// <exception cref="ArgumentException">The data or an option is not that of the run.</exception>
    /// <exception cref="ReformerFormatException">A file of the checkpoint is malformed.</exception>
    /// <exception cref="InvalidOperationException">The checkpoint directory has later checkpoints.</exception>
    public static Trainer Resume(
        ReformerModel model, string checkpoint, IBatchSource source, TrainingOptions? options = null,
        ILogger? logger = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(checkpoint);
        ArgumentNullException.ThrowIfNull(source);
        TrainerState state = TrainerState.Load(Path.Combine(checkpoint, TrainerState.FileName));
        options ??= state.Options;
        RequireSameRun(state, source, options);
        if (options.CheckpointDirectory is { } directory
            && CheckpointStore.List(directory) is [.., var newest]
            && newest.Step > state.Step)
        {
            throw new InvalidOperationException(
                $"{directory}: expected no checkpoint after step {state.Step}, found {newest.Path}; resume that or "
                    + "choose another directory"
            );
        }

        var trainer = new Trainer(model, source, options, logger, resuming: true);
        try
        {
            trainer._optimizer.Load(Path.Combine(checkpoint, OptimizerFile));
            trainer.Step = state.Step;
            trainer._savedStep = state.Step;
            trainer._tokens = state.Tokens;
            TrainerLog.Resumed(trainer._logger, state.Step, checkpoint);
            if (state.Options.Steps != options.Steps
                && options.Schedule is LearningRateSchedule.Linear or LearningRateSchedule.Cosine)
            {
                TrainerLog.StepsChanged(trainer._logger, state.Options.Steps, options.Steps);
            }

            return trainer;
        }
        catch
        {
            trainer.Dispose();
            throw;
        }
    }

    /// <summary>Does one step: gradients of all its batches, clipping, update.</summary>
    /// <returns>What happened.</returns>
    /// <exception cref="TrainingDivergedException">The loss or the gradients are not finite; the parameters are those
    /// before the step.</exception>
    /// <exception cref="ResidualRangeException">A residual stream left its exact range; the parameters are those before
    /// the step.</exception>
    public TrainingStep RunStep()
    {
        long started = Stopwatch.GetTimestamp();
        long step = Step + 1;
        LossResult loss = default;
        Model.ZeroGradients();
        _batch.Reshape(Options.BatchSize, Options.Length);
        for (int part = 0; part < Options.AccumulationSteps; part++)
        {
            long index = ((step - 1) * Options.AccumulationSteps) + part;
            _source.Fill(_batch, DataSplit.Train, Options.Seed, index);
            var run = new RunOptions
            {
                Seed = Options.Seed,
                Step = (ulong)index,
                Dropout = true,
                FullAttention = Options.FullAttention,
                Keep = Kept,
            };
            loss = loss.Add(Model.ForwardBackward(_batch, run, 1f / Options.AccumulationSteps));
        }

        RequireFinite(step, "loss", loss.LossSum);
        double norm = _optimizer.MeasureNorm();
        RequireFinite(step, "gradient norm", norm);
        double rate = Options.LearningRateAt(step);
        _optimizer.Update(rate, step);
        Model.Context.Synchronize();
        Step = step;
        long tokens = (long)_batch.TokenCount * Options.AccumulationSteps;
        _tokens += tokens;
        var done = new TrainingStep(
            step, loss, rate, norm, tokens, Stopwatch.GetElapsedTime(started).TotalSeconds, null, null);
        TrainerLog.Step(_logger, step, loss.Loss, rate, norm, done.TokensPerSecond);
        return done;
    }

    /// <summary>
    /// Does the steps that remain. Cancellation ends it after the step in progress, and that step is saved.
    /// </summary>
    /// <param name="progress">Told of each step; null for nobody.</param>
    /// <param name="cancellation">Ends the run early.</param>
    /// <returns>How it ended.</returns>
    /// <exception cref="TrainingDivergedException">The loss or the gradients are not finite.</exception>
    /// <exception cref="ResidualRangeException">A residual stream left its exact range.</exception>
    /// <exception cref="IOException">The data can no longer be read; what was done is saved.</exception>
    public TrainingResult Run(IProgress<TrainingStep>? progress = null, CancellationToken cancellation = default)
    {
        try
        {
            return RunSteps(progress, cancellation);
        }
        catch (Exception error) when (
            error is IOException or UnauthorizedAccessException or ReformerFormatException
            && Step > _savedStep
            && Options.CheckpointDirectory is not null)
        {
            // Data that can no longer be read costs no step: the parameters are those after the last whole one.
            string place = SaveCheckpoint(Options.CheckpointDirectory!);
            throw new IOException(
                FormattableString.Invariant($"{error.Message}; the run is saved at step {Step} in {place}"), error);
        }
    }

    /// <summary>Measures the loss on held-out batches, always the same ones.</summary>
    /// <param name="rounds">Hash rounds; null for those of the options.</param>
    /// <param name="fullAttention">Whether LSH layers attend to the whole sequence instead; null for what the options
    /// say of training.</param>
    /// <returns>The loss of all batches together.</returns>
    public LossResult EvaluateHeldOut(int? rounds = null, bool? fullAttention = null)
    {
        LossResult sum = default;
        _batch.Reshape(Options.BatchSize, Options.Length);
        for (int i = 0; i < Options.EvaluationBatches; i++)
        {
            _source.Fill(_batch, DataSplit.HeldOut, Options.Seed, i);
            sum = sum.Add(Model.Evaluate(_batch, new RunOptions
            {
                Seed = Options.Seed,
                Step = (ulong)i,
                Rounds = rounds ?? Options.EvaluationRounds,
                FullAttention = fullAttention ?? Options.FullAttention,
            }));
        }

        TrainerLog.HeldOut(_logger, Step, sum.Loss, sum.Bits, sum.Accuracy);
        return sum;
    }

    /// <summary>
    /// Writes a checkpoint: a directory with config.json, model.safetensors, optimizer.safetensors and trainer.json. At
    /// any moment, a kill included, the run's directory holds only whole checkpoints.
    /// </summary>
    /// <param name="directory">The run's directory.</param>
    /// <returns>Directory of the checkpoint.</returns>
    public string SaveCheckpoint(string directory)
    {
        string path = CheckpointStore.Add(
            directory,
            Step,
            Options.KeepCheckpoints,
            inside =>
            {
                Model.Save(inside);
                _optimizer.Save(Path.Combine(inside, OptimizerFile));
                new TrainerState(TrainerState.CurrentFormat, Step, _tokens, _source.Identity, Options).Save(
                    Path.Combine(inside, TrainerState.FileName));
            }
        );
        _savedStep = Step;
        TrainerLog.Saved(_logger, Step, path);
        return path;
    }

    /// <summary>Frees the optimizer's state.</summary>
    public void Dispose() => _optimizer.Dispose();

    private TrainingResult RunSteps(IProgress<TrainingStep>? progress, CancellationToken cancellation)
    {
        TrainingStep done = default;
        LossResult? heldOut = null;
        string? checkpoint = null;
        while (Step < Options.Steps && !cancellation.IsCancellationRequested)
        {
            done = RunStep();
            if (Options.EvaluateEvery > 0 && (Step == Options.Steps || Step % Options.EvaluateEvery == 0))
            {
                heldOut = EvaluateHeldOut();
                done = done with { HeldOut = heldOut };
            }

            bool due = Step == Options.Steps || (Options.CheckpointEvery > 0 && Step % Options.CheckpointEvery == 0);
            if (due && Options.CheckpointDirectory is { } directory)
            {
                checkpoint = SaveCheckpoint(directory);
                done = done with { Checkpoint = checkpoint };
            }

            progress?.Report(done);
        }

        if (Step < Options.Steps)
        {
            TrainerLog.Stopped(_logger, Step);
            if (done.Step == Step && done.Checkpoint is null && Options.CheckpointDirectory is { } directory)
            {
                checkpoint = SaveCheckpoint(directory);
            }
        }

        return new TrainingResult(Step >= Options.Steps, done, heldOut, checkpoint);
    }

    private static void RequireSameRun(TrainerState state, IBatchSource source, TrainingOptions options)
    {
        if (state.Data != source.Identity)
        {
            throw new ArgumentException(
                $"data: expected that of the run, {state.Data}, found {source.Identity}", nameof(source));
        }

        TrainingOptions expected = state.Options.WithIntervalsOf(options);
        if (expected != options)
        {
            throw new ArgumentException(
                $"options: expected those of the run, {expected}, found {options}", nameof(options));
        }
    }

    private static void RequireFinite(long step, string what, double value)
    {
        if (!double.IsFinite(value))
        {
            throw new TrainingDivergedException(step, what, value);
        }
    }
}
