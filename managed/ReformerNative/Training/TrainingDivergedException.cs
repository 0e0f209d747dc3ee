namespace ReformerNative.Training;

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

    internal static void ThrowUnlessFinite(long step, string what, double value)
    {
        if (!double.IsFinite(value))
        {
            throw new TrainingDivergedException(step, what, value);
        }
    }
}
