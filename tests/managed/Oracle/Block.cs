namespace ReformerNative.Oracle;

/// <summary>
/// Parameters of a reversible block, or gradients of them. Linear weights are [out, in]; Key is null with shared QK.
/// </summary>
public sealed record BlockParameters
{
    public required double[] AttentionNormWeight { get; init; }
    public required double[] AttentionNormBias { get; init; }
    public required double[] Query { get; init; }
    public double[]? Key { get; init; }
    public required double[] Value { get; init; }
    public required double[] Output { get; init; }
    public double[]? OutputBias { get; init; }
    public required double[] FeedForwardNormWeight { get; init; }
    public required double[] FeedForwardNormBias { get; init; }
    public required FeedForwardParameters FeedForward { get; init; }

    /// <summary>Every tensor with its name in the C header.</summary>
    public IEnumerable<(string Name, double[]? Values)> Tensors =>
    [
        ("attention_norm_weight", AttentionNormWeight), ("attention_norm_bias", AttentionNormBias),
        ("query", Query), ("key", Key), ("value", Value), ("output", Output), ("output_bias", OutputBias),
        ("feed_forward_norm_weight", FeedForwardNormWeight), ("feed_forward_norm_bias", FeedForwardNormBias),
        ("w1", FeedForward.W1), ("b1", FeedForward.B1), ("w2", FeedForward.W2), ("b2", FeedForward.B2),
    ];
}

/// <summary>Options of a reversible block. GridExponent null is the plain residual, else the exact one.</summary>
public sealed record BlockOptions
{
    public required AttentionOptions Attention { get; init; }
    public required int Batch { get; init; }
    public required int Tokens { get; init; }
    public required int Width { get; init; }
    public required int Heads { get; init; }
    public Activation Activation { get; init; }
    public double LayerNormEpsilon { get; init; } = 1e-12;
    public float AttentionOutputDropout { get; init; }
    public float FeedForwardDropout { get; init; }
    public int? GridExponent { get; init; }
    public Randomness Randomness { get; init; } = Randomness.None;
}

/// <summary>
/// The two streams [B,T,E]; after a forward pass also the hashes and the attention result [B,T,H*D] before the output
/// projection.
/// </summary>
public sealed record Streams(double[] First, double[] Second, int[]? Buckets = null, double[]? AttentionResult = null);

/// <summary>y1 = x1 + Attention(LayerNorm(x2)); y2 = x2 + FeedForward(LayerNorm(y1)).</summary>
public static class Block
{
    /// <summary>Buckets that are given are used; else an LSH block hashes by the rotations.</summary>
    public static Streams Forward(
        BlockOptions options, BlockParameters p, double[] x1, double[] x2, bool[]? mask, double[]? rotations,
        int[]? buckets = null)
    {
        var attention = AttentionSublayer(options, p, x2, mask, rotations, buckets);
        var y1 = Add(x1, attention.Output, 1);
        return new(y1, Add(x2, FeedForwardSublayer(options, p, y1), 1), attention.Buckets, attention.Result);
    }

    /// <summary>The block's inputs from its outputs.</summary>
    public static Streams Inverse(
        BlockOptions options, BlockParameters p, double[] y1, double[] y2, bool[]? mask, double[]? rotations,
        int[]? buckets = null)
    {
        var x2 = Add(y2, FeedForwardSublayer(options, p, y1), -1);
        var attention = AttentionSublayer(options, p, x2, mask, rotations, buckets);
        return new(Add(y1, attention.Output, -1), x2, attention.Buckets, attention.Result);
    }

    /// <summary>
    /// Gradients with respect to the block's inputs x1, x2 (given here, not its outputs) and to its parameters.
    /// </summary>
    public static (Streams Inputs, BlockParameters Parameters) Backward(
        BlockOptions options, BlockParameters p, double[] x1, double[] x2, double[] gradY1, double[] gradY2,
        bool[]? mask, double[]? rotations, int[]? buckets = null)
    {
        var attention = AttentionSublayer(options, p, x2, mask, rotations, buckets);
        var y1 = Add(x1, attention.Output, 1);

        var normalY1 = LayerNorm.Forward(y1, p.FeedForwardNormWeight, p.FeedForwardNormBias, options.LayerNormEpsilon);
        var feedForward = FeedForward.Backward(
            normalY1, p.FeedForward, options.Activation, options.FeedForwardDropout, options.Randomness, gradY2);
        var feedForwardNorm = LayerNorm.Backward(y1, p.FeedForwardNormWeight, options.LayerNormEpsilon, feedForward.X);
        var gradX1 = Add(gradY1, feedForwardNorm.X, 1);

        var gradProjected = Philox.Dropout(
            gradX1, options.Randomness, Site.AttentionOutput, options.AttentionOutputDropout);
        var output = Linear.Backward(
            attention.Result, p.Output, p.OutputBias, p.Output.Length / options.Width, gradProjected);
        var inner = Attention.Backward(options.Attention, attention.Input, options.Randomness, output.X);
        var query = Linear.Backward(attention.Normal, p.Query, null, options.Width, inner.Q);
        var key = inner.K is null ? null : Linear.Backward(attention.Normal, p.Key!, null, options.Width, inner.K);
        var value = Linear.Backward(attention.Normal, p.Value, null, options.Width, inner.V);
        var gradNormal = Add(query.X, value.X, 1);
        gradNormal = key is null ? gradNormal : Add(gradNormal, key.X, 1);
        var attentionNorm = LayerNorm.Backward(x2, p.AttentionNormWeight, options.LayerNormEpsilon, gradNormal);
        return (new(gradX1, Add(gradY2, attentionNorm.X, 1)), new()
        {
            AttentionNormWeight = attentionNorm.Weight,
            AttentionNormBias = attentionNorm.Bias,
            Query = query.Weight,
            Key = key?.Weight,
            Value = value.Weight,
            Output = output.Weight,
            OutputBias = output.Bias,
            FeedForwardNormWeight = feedForwardNorm.Weight,
            FeedForwardNormBias = feedForwardNorm.Bias,
            FeedForward = feedForward.Parameters,
        });
    }

    private static double[] Add(double[] a, double[] b, double sign) => [.. a.Zip(b, (x, y) => x + sign * y)];

    private static double[] ToGrid(BlockOptions options, double[] values) =>
        options.GridExponent is { } exponent ? [.. values.Select(v => Grid.Round(v, exponent))] : values;

    private static (
        double[] Normal, AttentionInput Input, int[]? Buckets, double[] Result, double[] Output) AttentionSublayer(
        BlockOptions options, BlockParameters p, double[] x2, bool[]? mask, double[]? rotations, int[]? buckets)
    {
        var normal = LayerNorm.Forward(x2, p.AttentionNormWeight, p.AttentionNormBias, options.LayerNormEpsilon);
        var shape = new AttentionShape(
            options.Batch, options.Tokens, options.Heads, p.Query.Length / options.Width / options.Heads);
        var q = Linear.Forward(normal, p.Query, null, options.Width);
        var k = options.Attention.SharedQk ? null : Linear.Forward(normal, p.Key!, null, options.Width);
        var v = Linear.Forward(normal, p.Value, null, options.Width);
        if (options.Attention.Kind == AttentionKind.Lsh)
        {
            buckets ??= Lsh.Hash(options.Attention, shape, q, mask, rotations!);
        }

        var input = new AttentionInput(shape, q, k, v, mask, buckets);
        var result = Attention.Forward(options.Attention, input, options.Randomness).Out;
        var projected = Linear.Forward(result, p.Output, p.OutputBias, shape.Heads * shape.HeadSize);
        var dropped = Philox.Dropout(
            projected, options.Randomness, Site.AttentionOutput, options.AttentionOutputDropout);
        return (normal, input, buckets, result, ToGrid(options, dropped));
    }

    private static double[] FeedForwardSublayer(BlockOptions options, BlockParameters p, double[] y1)
    {
        var normal = LayerNorm.Forward(y1, p.FeedForwardNormWeight, p.FeedForwardNormBias, options.LayerNormEpsilon);
        return ToGrid(
            options,
            FeedForward.Forward(
                normal, p.FeedForward, options.Activation, options.FeedForwardDropout, options.Randomness)
        );
    }
}
