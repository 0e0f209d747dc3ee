namespace ReformerNative.Model;

/// <summary>Loss of a batch.</summary>
/// <param name="LossSum">Sum of the cross entropies in nats (of the smoothed target while training with label
/// smoothing).</param>
/// <param name="Count">Labels that took part.</param>
/// <param name="Correct">Labels that the largest output named.</param>
public readonly record struct LossResult(double LossSum, long Count, long Correct)
{
    /// <summary>Mean loss in nats.</summary>
    public double Loss => LossSum / Count;

    /// <summary>Mean loss in bits; bits per byte for byte-level text.</summary>
    public double Bits => Loss / Math.Log(2);

    /// <summary>Part of the labels that the largest output named, 0 to 1.</summary>
    public double Accuracy => (double)Correct / Count;

    /// <summary>Losses of two batches together.</summary>
    /// <param name="other">The other batch.</param>
    /// <returns>The sums.</returns>
    public LossResult Add(LossResult other) =>
        new(LossSum + other.LossSum, Count + other.Count, Correct + other.Correct);
}
