using ReformerNative.Model;

namespace ReformerNative.Training;

/// <summary>How a run ended.</summary>
/// <param name="Completed">Whether all steps were done; false when it was cancelled.</param>
/// <param name="Last">The last step; its number is 0 when none was done.</param>
/// <param name="HeldOut">The last held-out loss; null when none was measured.</param>
/// <param name="Checkpoint">The newest checkpoint; null when there is none.</param>
public readonly record struct TrainingResult(
    bool Completed, TrainingStep Last, LossResult? HeldOut, string? Checkpoint);
