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
    private readonly IBatchSource _source;
    private readonly ILogger _logger;
    private readonly Optimizer _optimizer;
    private readonly TokenBatch _batch;
    private readonly RunCheckpoints _checkpoints;
    private long _tokens;
    private bool _updating; // parameters may be half those of one step, half those of the next

    /// <summary>Prepares a run from its first step.</summary>
    /// <param name="model">The model to train; it must live as long as the trainer.</param>
    /// <param name="source">The data.</param>
    /// <param name="options">The options.</param>
    /// <param name="logger">Takes messages; null for none.</param>
    /// <exception cref="ArgumentException">
    /// An option is impossible, the data has more ids than the model or cannot give batches of this shape, or the
    /// memory budget is less than training takes at least.
    /// </exception>
    /// <exception cref="InvalidOperationException">The checkpoint directory already has checkpoints.</exception>
    /// <exception cref="IOException">Another process works in the checkpoint directory, or it cannot be written
    /// to.</exception>
    public Trainer(ReformerModel model, IBatchSource source, TrainingOptions options, ILogger? logger = null)
        : this(model, source, options, logger, resumed: null)
    {
    }

    private Trainer(
        ReformerModel model, IBatchSource source, TrainingOptions options, ILogger? logger, TrainerState? resumed)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(source);
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        Model = model;
        Options = options;
        _source = source;
        _logger = logger ?? NullLogger.Instance;
        _batch = new TokenBatch(options.BatchSize, options.Length);
        RunChecks.RequireData(source, model.Config, options, _batch);
        model.ResolveBuckets(options.Length);
        Kept = options.MemoryBudget is null ? null : MemoryPlan.ForTraining(model.Config, model.Context, options).Kept;
        _checkpoints = new RunCheckpoints(options, _logger);
        try
        {
            RunChecks.RequireNewest(options.CheckpointDirectory, resumed?.Step);
            _optimizer = new Optimizer(model, options);
        }
        catch
        {
            _checkpoints.Dispose();
            throw;
        }
    }

    /// <summary>The model.</summary>
    public ReformerModel Model { get; }

    /// <summary>The options.</summary>
    public TrainingOptions Options { get; }

    /// <summary>What each layer keeps within the memory budget; null without one, for nothing.</summary>
    public IReadOnlyList<KeepActivations>? Kept { get; }

    /// <summary>Steps done, over all resumptions.</summary>
    public long Step { get; private set; }

    /// <summary>The newest checkpoint that this trainer wrote or began with; null when there is none.</summary>
    public string? LastCheckpoint => _checkpoints.Last;

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
    /// <exception cref="IOException">Another process works in the checkpoint directory, or it cannot be written
    /// to.</exception>
    public static Trainer Resume(
        ReformerModel model, string checkpoint, IBatchSource source, TrainingOptions? options = null,
        ILogger? logger = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(checkpoint);
        ArgumentNullException.ThrowIfNull(source);
        TrainerState state = TrainerState.Load(Path.Combine(checkpoint, CheckpointFiles.Trainer));
        options ??= state.Options;
        RunChecks.RequireSameRun(state, source, options);
        var trainer = new Trainer(model, source, options, logger, state);
        try
        {
            trainer._optimizer.Load(Path.Combine(checkpoint, CheckpointFiles.Optimizer));
            trainer.Step = state.Step;
            trainer._checkpoints.Continue(state.Step, checkpoint);
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

        TrainingDivergedException.ThrowUnlessFinite(step, "loss", loss.LossSum);
        double norm = _optimizer.MeasureNorm();
        TrainingDivergedException.ThrowUnlessFinite(step, "gradient norm", norm);
        double rate = Options.LearningRateAt(step);
        _updating = true;
        _optimizer.Update(rate, step);
        Model.Context.Synchronize();
        _updating = false;
        Step = step;
        long tokens = (long)_batch.TokenCount * Options.AccumulationSteps;
        _tokens += tokens;
        var done = new TrainingStep(
            step, loss, rate, norm, tokens, Stopwatch.GetElapsedTime(started).TotalSeconds, null, null);
        TrainerLog.Step(_logger, step, loss.Loss, rate, norm, done.TokensPerSecond);
        return done;
    }

    /// <summary>
    /// Does the steps that remain. A step is saved before it is measured. Cancellation ends the run after the step or
    /// the batch of a measurement in progress; that step is saved, and so is the last step when something fails: the
    /// data, a measurement, or whoever is told of the progress.
    /// </summary>
    /// <param name="progress">Told of each step; null for nobody.</param>
    /// <param name="cancellation">Ends the run early.</param>
    /// <returns>How it ended.</returns>
    /// <exception cref="TrainingDivergedException">The loss, the gradients or the parameters are not
    /// finite.</exception>
    /// <exception cref="ResidualRangeException">A residual stream left its exact range.</exception>
    /// <exception cref="IOException">A checkpoint could not be written; the older ones are still there.</exception>
    public TrainingResult Run(IProgress<TrainingStep>? progress = null, CancellationToken cancellation = default)
    {
        TrainingStep done = default;
        LossResult? heldOut = null;
        string? checkpoint = null;
        try
        {
            while (Step < Options.Steps && !cancellation.IsCancellationRequested)
            {
                done = RunStep();
                if (Options.CheckpointDirectory is { } directory && Options.IsDue(Step, Options.CheckpointEvery))
                {
                    checkpoint = SaveCheckpoint(directory);
                    done = done with { Checkpoint = checkpoint };
                }

                if (Options.EvaluateEvery > 0 && Options.IsDue(Step, Options.EvaluateEvery))
                {
                    done = done with { HeldOut = Measure(cancellation) };
                    heldOut = done.HeldOut ?? heldOut;
                }

                progress?.Report(done);
            }
        }
        catch
        {
            if (!_updating)
            {
                _checkpoints.SaveAfterFailure(Step, WriteCheckpoint);
            }

            throw;
        }

        if (Step < Options.Steps)
        {
            TrainerLog.Stopped(_logger, Step);
            if (_checkpoints.HasNews(Step))
            {
                checkpoint = SaveCheckpoint(Options.CheckpointDirectory!);
            }
        }

        return new TrainingResult(Step >= Options.Steps, done, heldOut, checkpoint);
    }

    /// <summary>Measures the loss on held-out batches, always the same ones.</summary>
    /// <param name="rounds">Hash rounds; null for those of the options.</param>
    /// <param name="fullAttention">Whether LSH layers attend to the whole sequence instead; null for what the options
    /// say of training.</param>
    /// <param name="cancellation">Ends it after the batch in progress.</param>
    /// <returns>The loss of all batches together.</returns>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public LossResult EvaluateHeldOut(
        int? rounds = null, bool? fullAttention = null, CancellationToken cancellation = default)
    {
        _batch.Reshape(Options.BatchSize, Options.Length);
        var run = new RunOptions
        {
            Seed = Options.Seed,
            Rounds = rounds ?? Options.EvaluationRounds,
            FullAttention = fullAttention ?? Options.FullAttention,
        };
        LossResult sum = HeldOutLoss.Measure(Model, _source, _batch, Options.EvaluationBatches, run, cancellation);
        TrainerLog.HeldOut(_logger, Step, sum.Loss, sum.Bits, sum.Accuracy);
        return sum;
    }

    /// <summary>
    /// Writes a checkpoint: a directory with config.json, model.safetensors, optimizer.safetensors and trainer.json. At
    /// any moment, a kill included, the run's directory holds only whole checkpoints.
    /// </summary>
    /// <param name="directory">The run's directory.</param>
    /// <returns>Directory of the checkpoint.</returns>
    /// <exception cref="TrainingDivergedException">A parameter is not finite; nothing was written.</exception>
    /// <exception cref="IOException">The disk did not take it; the older checkpoints are still there.</exception>
    public string SaveCheckpoint(string directory) => _checkpoints.Save(directory, Step, WriteCheckpoint);

    /// <summary>Frees the optimizer's state, and lets other processes have the checkpoint directory.</summary>
    public void Dispose()
    {
        _optimizer.Dispose();
        _checkpoints.Dispose();
    }

    private void WriteCheckpoint(string directory)
    {
        Model.Save(directory);
        _optimizer.Save(Path.Combine(directory, CheckpointFiles.Optimizer));
        new TrainerState(TrainerState.CurrentFormat, Step, _tokens, _source.Identity, Options).Save(
            Path.Combine(directory, CheckpointFiles.Trainer));
    }

    /// <summary>The held-out loss; null when the measurement was cut short.</summary>
    private LossResult? Measure(CancellationToken cancellation)
    {
        try
        {
            return EvaluateHeldOut(cancellation: cancellation);
        }
        catch (OperationCanceledException) when (cancellation.IsCancellationRequested)
        {
            return null;
        }
    }
}
