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
