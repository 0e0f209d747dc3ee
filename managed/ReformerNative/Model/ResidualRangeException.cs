namespace ReformerNative.Model;

/// <summary>A residual stream left the range in which exact residuals are exact, or is not finite.</summary>
[System.Diagnostics.CodeAnalysis.SuppressMessage(
    "Design", "CA1032", Justification = "The message is made from the place.")]
public sealed class ResidualRangeException : Exception
{
    internal ResidualRangeException(
        int layer, int stream, long example, long token, long channel, long count, int gridExponent)
        : base(Describe(layer, stream, example, token, channel, count, gridExponent))
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

    private static string Describe(
        int layer, int stream, long example, long token, long channel, long count, int gridExponent)
    {
        string place = layer < 0 ? "the embedding" : FormattableString.Invariant($"layer {layer}");
        double limit = Math.ScaleB(1, 24 + gridExponent);
        return FormattableString.Invariant(
            $"{place}, stream {stream}, example {example}, token {token}, channel {channel}: ")
            + FormattableString.Invariant($"expected a finite value within ±{limit}, ")
            + FormattableString.Invariant($"the range of residual_grid_exponent {gridExponent}; ")
            + FormattableString.Invariant($"found a larger one ({count} such values in this pass). ")
            + "Remedies: a lower learning rate or a tighter gradient clipping; a larger residual_grid_exponent "
            + "(each step doubles the range); residual: float";
    }
}
