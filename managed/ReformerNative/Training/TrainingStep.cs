using ReformerNative.Model;

namespace ReformerNative.Training;

/// <summary>What happened in one training step.</summary>
/// <param name="Step">Its number, 1 for the first.</param>
/// <param name="Loss">Loss of its batches before the update.</param>
/// <param name="LearningRate">The rate of its update.</param>
/// <param name="GradientNorm">Global norm of the gradients before clipping.</param>
/// <param name="Tokens">Tokens that it read.</param>
/// <param name="Seconds">How long it took, without measurement and checkpoint.</param>
/// <param name="HeldOut">Held-out loss after the update; null when it was not measured.</param>
/// <param name="Checkpoint">Directory of the checkpoint written after the update; null when none was.</param>
public readonly record struct TrainingStep(
    long Step, LossResult Loss, double LearningRate, double GradientNorm, long Tokens, double Seconds,
    LossResult? HeldOut, string? Checkpoint)
{
    /// <summary>Tokens read a second.</summary>
    public double TokensPerSecond => Tokens / Seconds;
}

/// <summary>How a run ended.</summary>
/// <param name="Completed">Whether all steps were done; false when it was cancelled.</param>
/// <param name="Last">The last step; its number is 0 when none was done.</param>
/// <param name="HeldOut">The last held-out loss; null when none was measured.</param>
/// <param name="Checkpoint">The newest checkpoint; null when there is none.</param>
public readonly record struct TrainingResult(
    bool Completed, TrainingStep Last, LossResult? HeldOut, string? Checkpoint);

/// <summary>
/// Training cannot go on: the loss or the gradients of a step are not finite, and the parameters are those before it;
/// or parameters that should be saved are not finite.
/// </summary>
[System.Diagnostics.CodeAnalysis.SuppressMessage(
    "Design", "CA1032", Justification = "The message is made from the step.")]
public sealed class TrainingDivergedException : Exception
{
    internal TrainingDivergedException(long step, string what, double value)
        : base(FormattableString.Invariant($"step {step}: expected a finite {what}, found {value}; ")
            + "try a lower learning rate or a tighter gradient norm")
        => Step = step;

    internal TrainingDivergedException(long step, NotFiniteNumberException error)
        : base(
            FormattableString.Invariant($"step {step}: {error.Message}; it was not saved and older checkpoints stay; ")
                + "try a lower learning rate or a tighter gradient norm",
            error)
        => Step = step;

    /// <summary>The step that failed.</summary>
    public long Step { get; }
}
