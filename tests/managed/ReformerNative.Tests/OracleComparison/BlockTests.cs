using ReformerNative.Oracle;
using ReformerNative.Tensors;
using Native = ReformerNative.Ops;

namespace ReformerNative.Tests.OracleComparison;

/// <summary>
/// The reversible block, forward and inverse-with-gradient, against the oracle, whose backward pass has the stored
/// inputs.
/// </summary>
public sealed class BlockTests
{
    private const int Grid = -16;

    private static readonly AttentionOptions s_lsh = new()
    {
        Kind = AttentionKind.Lsh,
        SharedQk = true,
        Causal = true,
        KeyNorm = KeyNorm.Rms,
        Rounds = 2,
        Factors = [4],
        ChunkLength = 8,
        ChunksBefore = 1,
        PadBucket = true,
        Dropout = 0.1f,
    };

    private static readonly Dictionary<string, AttentionOptions> s_kinds = new()
    {
        ["trax"] = s_lsh with { Wrap = true, RepeatChunks = true },
        ["paper"] = s_lsh with { Window = LshWindow.SameBucket, LogCount = true },
        ["strict"] = s_lsh with { Window = LshWindow.Strict, LogCount = true, Rounds = 4 },
        ["local"] = new()
        {
            Kind = AttentionKind.Local,
            Causal = true,
            ChunkLength = 8,
            ChunksBefore = 1,
            Wrap = true,
            RepeatChunks = true,
            Dropout = 0.1f,
        },
        ["full"] = new() { Kind = AttentionKind.Full, Dropout = 0.1f },
        ["full shared"] = new() { Kind = AttentionKind.Full, SharedQk = true, KeyNorm = KeyNorm.Rms, Causal = true },
    };

    private static IEnumerable<string> Kinds => s_kinds.Keys;

    [Test]
    public void Block_OddLengths_EqualsOracle(
        [ValueSource(nameof(Kinds))] string kind, [Values] bool isExact, [Values(1, 9, 31, 33)] int tokens,
        [Values] bool isMasked)
    {
        var attention = s_kinds[kind];
        const int Batch = 2, Width = 24, Heads = 3, HeadSize = 7, Hidden = 41;
        var random = new Random(tokens);
        var options = new BlockOptions
        {
            Attention = attention,
            Batch = Batch,
            Tokens = tokens,
            Width = Width,
            Heads = Heads,
            Activation = Activation.GeluTanh,
            LayerNormEpsilon = 1e-6f,
            AttentionOutputDropout = isMasked ? 0.1f : 0,
            FeedForwardDropout = isMasked ? 0.2f : 0,
            GridExponent = isExact ? Grid : null,
            Randomness = new(21, 8, 5),
        };
        var p = Parameters(random, attention.SharedQk, Width, Heads * HeadSize, Hidden, hasOutputBias: isMasked);
        int size = Batch * tokens * Width;
        double Snap(double value) => isExact ? Oracle.Grid.Round(value, Grid) : value;
        double[] x1 = [.. random.Normals(size).Select(Snap)], x2 = [.. random.Normals(size).Select(Snap)];
        double[] gradY1 = random.Normals(size), gradY2 = random.Normals(size);
        bool[]? mask = isMasked ? random.Mask(Batch * tokens) : null;
        bool isLsh = attention.Kind == AttentionKind.Lsh;
        double[]? rotations = isLsh
            ? random.Normals(Heads * HeadSize * attention.Rounds * attention.Factors.Sum() / 2)
            : null;

        using var run = new NativeRun();
        long[] stream = [Batch, tokens, Width];
        var weights = Views(p, (values, shape) => run.Input(values, shape));
        var gradients = Views(p, (_, shape) => run.Accumulator(shape));
        var native = new Native.ReversibleBlock
        {
            Layer = 5,
            Seed = 21,
            Step = 8,
            Attention = AttentionCase.ToNative(attention),
            Heads = Heads,
            Activation = Native.Activation.GeluTanh,
            LayerNormEpsilon = 1e-6f,
            AttentionOutputDropout = options.AttentionOutputDropout,
            FeedForwardDropout = options.FeedForwardDropout,
            Residual = isExact ? Native.ResidualMode.Exact : Native.ResidualMode.Float,
            GridExponent = isExact ? Grid : 0,
            FeedForwardChunk = tokens == 9 ? 5 : 0,
            HeadGroup = tokens == 9 ? 2 : 0,
            Stream1 = run.InPlace(x1, stream),
            Stream2 = run.InPlace(x2, stream),
            GradStream1 = run.InPlace(gradY1, stream),
            GradStream2 = run.InPlace(gradY2, stream),
            Mask = run.Input(mask, Batch, tokens),
            Rotations = run.Input(rotations, Heads, HeadSize, attention.Rounds, attention.Factors.Sum() / 2),
            Buckets = isLsh ? run.OutputIntegers(Batch, Heads, attention.Rounds, tokens) : default,
            AttentionResult = run.Output(Batch, tokens, Heads * HeadSize),
            RangeReport = isExact ? run.Zeros(DType.Int64, 4) : default,
            Parameters = weights.Native,
            Gradients = gradients.Native,
        };
        native.Forward(run.Workspace);
        int[]? buckets = isLsh ? native.Buckets.ToArray<int>() : null;
        if (isLsh)
        {
            Assert.That(buckets, Is.EqualTo(Block.Forward(options, p, x1, x2, mask, rotations).Buckets));
        }

        // Near the middle of two grid points float32 may round a sub-layer's output to the other one.
        var y = Block.Forward(options, p, x1, x2, mask, null, buckets);
        double floor = isExact ? Math.ScaleB(1.01, Grid) : 0;
        NativeRun.Expect("block.attention_result", native.AttentionResult, y.AttentionResult!, NativeRun.ForwardLimit);
        NativeRun.Expect("block.stream1", native.Stream1, y.First, NativeRun.ForwardLimit, floor);
        NativeRun.Expect("block.stream2", native.Stream2, y.Second, NativeRun.ForwardLimit, 2 * floor);

        var backward = isExact ? native with { Buckets = default } : native;
        backward.Backward(run.Workspace);
        NativeRun.Expect("block.recovered1", native.Stream1, x1, isExact ? 0 : NativeRun.ForwardLimit);
        NativeRun.Expect("block.recovered2", native.Stream2, x2, isExact ? 0 : NativeRun.ForwardLimit);
        var (gradX, gradP) = Block.Backward(options, p, x1, x2, gradY1, gradY2, mask, null, buckets);
        NativeRun.Expect("block.grad_stream1", native.GradStream1, gradX.First, NativeRun.GradientLimit);
        NativeRun.Expect("block.grad_stream2", native.GradStream2, gradX.Second, NativeRun.GradientLimit);
        foreach (var (name, gradient) in gradP.Tensors.Where(t => t.Values is not null))
        {
            NativeRun.ExpectAdded($"block.grad_{name}", gradients.Named[name], gradient!);
        }

        if (isExact)
        {
            Assert.That(native.RangeReport.ToArray<long>(), Is.All.Zero);
        }

        run.CheckMemory();
    }

    private static BlockParameters Parameters(
        Random random, bool shared, int width, int inner, int hidden, bool hasOutputBias) =>
        new()
        {
            AttentionNormWeight = random.Normals(width, 0.3, 1),
            AttentionNormBias = random.Normals(width),
            Query = random.Normals(inner * width, 1 / Math.Sqrt(width)),
            Key = shared ? null : random.Normals(inner * width, 1 / Math.Sqrt(width)),
            Value = random.Normals(inner * width, 1 / Math.Sqrt(width)),
            Output = random.Normals(width * inner, 1 / Math.Sqrt(inner)),
            OutputBias = hasOutputBias ? random.Normals(width) : null,
            FeedForwardNormWeight = random.Normals(width, 0.3, 1),
            FeedForwardNormBias = random.Normals(width),
            FeedForward = new(
                random.Normals(hidden * width, 1 / Math.Sqrt(width)), random.Normals(hidden),
                random.Normals(width * hidden, 1 / Math.Sqrt(hidden)), random.Normals(width)),
        };

    /// <summary>A native tensor for each parameter, and the same by name.</summary>
    private static (Native.BlockParameters Native, Dictionary<string, TensorView> Named) Views(
        BlockParameters p, Func<double[], long[], TensorView> make)
    {
        long width = p.AttentionNormWeight.Length, inner = p.Query.Length / width, hidden = p.FeedForward.B1.Length;
        var shapes = new Dictionary<string, long[]>
        {
            ["query"] = [inner, width],
            ["key"] = [inner, width],
            ["value"] = [inner, width],
            ["output"] = [width, inner],
            ["w1"] = [hidden, width],
            ["w2"] = [width, hidden],
        };
        var named = p.Tensors.ToDictionary(
            t => t.Name,
            t => t.Values is null ? default : make(t.Values, shapes.GetValueOrDefault(t.Name) ?? [t.Values.Length]));
        return (
            new()
            {
                AttentionNormWeight = named["attention_norm_weight"],
                AttentionNormBias = named["attention_norm_bias"],
                Query = named["query"],
                Key = named["key"],
                Value = named["value"],
                Output = named["output"],
                OutputBias = named["output_bias"],
                FeedForwardNormWeight = named["feed_forward_norm_weight"],
                FeedForwardNormBias = named["feed_forward_norm_bias"],
                W1 = named["w1"],
                B1 = named["b1"],
                W2 = named["w2"],
                B2 = named["b2"],
            },
            named
        );
    }
}
