namespace ReformerNative.Model;

/// <summary>
/// What a single pass through a model depends on besides its parameters and its input. The default is a deterministic
/// evaluation.
/// </summary>
public readonly record struct RunOptions
{
    /// <summary>Seed of rotations and dropout.</summary>
    public ulong Seed { get; init; }

    /// <summary>Step: other steps draw other rotations and dropout. Below 2^32.</summary>
    public ulong Step { get; init; }

    /// <summary>Whether dropout is on.</summary>
    public bool Dropout { get; init; }

    /// <summary>
    /// Hash rounds, 1 or more; null for those of the configuration. More rounds at evaluation are usually better.
    /// </summary>
    public int? Rounds { get; init; }

    /// <summary>LSH layers attend to the whole sequence, unhashed, with the same shared and normalised keys.</summary>
    public bool FullAttention { get; init; }

    /// <summary>
    /// Rotations to use instead of random ones: one array for each layer, [S, D, R, columns] row-major (S by the
    /// rotation scope: 1, H or B·H), null for layers that do not hash.
    /// </summary>
    public IReadOnlyList<float[]?>? Rotations { get; init; }

    /// <summary>
    /// What each layer keeps for the backward pass of a pass with gradients; null for nothing. The model holds the
    /// buffers from then on, as it holds those of its last batch.
    /// </summary>
    public IReadOnlyList<KeepActivations>? Keep { get; init; }
}

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

/// <summary>
/// How far the streams that the backward pass recovered are from those that the forward pass started with.
/// </summary>
/// <param name="BitIdentical">Whether every value has the same bits.</param>
/// <param name="MaxAbs">The largest difference.</param>
public readonly record struct Reconstruction(bool BitIdentical, double MaxAbs)
{
    internal Reconstruction And(Reconstruction other) =>
        new(BitIdentical && other.BitIdentical, Math.Max(MaxAbs, other.MaxAbs));
}

/// <summary>A residual stream left the range in which exact residuals are exact, or is not finite.</summary>
[System.Diagnostics.CodeAnalysis.SuppressMessage(
    "Design", "CA1032", Justification = "The message is made from the place.")]
public sealed class ResidualRangeException : Exception
{
    internal ResidualRangeException(
        int layer, int stream, long example, long token, long channel, long count, int gridExponent)
        : base(
            FormattableString.Invariant($"{(layer < 0 ? "the embedding" : $"layer {layer}")}, stream {stream}, ")
                + FormattableString.Invariant($"example {example}, token {token}, channel {channel}: expected a ")
                + FormattableString.Invariant($"finite value within ±{Math.ScaleB(1, 24 + gridExponent)}, the range ")
                + FormattableString.Invariant($"of residual_grid_exponent {gridExponent}; found a larger one ")
                + FormattableString.Invariant($"({count} such values in this pass). Remedies: a lower learning rate ")
                + "or a tighter gradient clipping; a larger residual_grid_exponent (each step doubles the range); "
                + "residual: float"
        )
    {
        Layer = layer;
        Stream = stream;
        Example = example;
        Token = token;
    }

    /// <summary>Layer whose result is out of range, from 0; -1 for the embedding.</summary>
    public int Layer { get; }

    /// <summary>Stream, 1 or 2.</summary>
    public int Stream { get; }

    /// <summary>Example of the batch, from 0.</summary>
    public long Example { get; }

    /// <summary>Token of the example, from 0.</summary>
    public long Token { get; }
}
