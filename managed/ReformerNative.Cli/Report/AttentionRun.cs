using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Cli.Report;

/// <summary>
/// One attention on random numbers. Backward takes the buckets that forward found, as a training step that stores them
/// does.
/// </summary>
internal sealed class AttentionRun : IDisposable
{
    private readonly List<Tensor> _tensors = [];
    private readonly Workspace _workspace;
    private readonly Attention _op;

    public AttentionRun(
        ReformerContext context, AttentionOptions options, long length, long batch, long heads, long headSize,
        ulong seed)
    {
        bool lsh = options.Kind == AttentionKind.Lsh;
        var shape = new TensorShape(batch, length, heads, headSize);
        _workspace = new Workspace(context);
        _op = new Attention
        {
            Options = options,
            Q = Normal(context, shape, seed),
            K = options.SharedQk ? default : Normal(context, shape, seed),
            V = Normal(context, shape, seed),
            Rotations = lsh
                ? Normal(context, options.RotationsShape(RotationScope.PerHead, batch, heads, headSize), seed)
                : default,
            Buckets = lsh
                ? Empty(context, new TensorShape(batch, heads, options.Rounds, length), DType.Int32)
                : default,
            Out = Empty(context, shape),
            LogSumExp = Empty(context, new TensorShape(batch, heads, length)),
            GradOut = Normal(context, shape, seed),
            GradQ = Empty(context, shape),
            GradK = options.SharedQk ? default : Empty(context, shape),
            GradV = Empty(context, shape),
        };
        FlopsForward = Flops.AttentionForward(options, length, batch, heads, headSize);
        FlopsBackward = Flops.AttentionBackward(options, length, batch, heads, headSize);
    }

    public double FlopsForward { get; }

    public double FlopsBackward { get; }

    /// <summary>Median seconds of the forward pass, and of both passes, after one run that is not counted.</summary>
    public (double Forward, double Both) Time(ReformerContext context, int repeat)
    {
        var forward = new List<double>();
        var both = new List<double>();
        for (int run = -1; run < repeat; run++)
        {
            double first = Measure.Seconds(context, () => _op.Forward(_workspace));
            double second = Measure.Seconds(context, () => _op.Backward(_workspace));
            if (run >= 0)
            {
                forward.Add(first);
                both.Add(first + second);
            }
        }

        return (Measure.Median(forward), Measure.Median(both));
    }

    public void Dispose()
    {
        _tensors.ForEach(tensor => tensor.Dispose());
        _workspace.Dispose();
    }

    /// <summary>Options of a named form, with the buckets that its rule chooses for the length.</summary>
    public static AttentionOptions Lsh(AttentionPreset preset, bool causal, long length, long chunk, int rounds)
    {
        long padded = (length + chunk - 1) / chunk * chunk;
        return AttentionOptions.Lsh(
            preset, causal, chunk, rounds, BucketFactors.Automatic(preset.Buckets, padded, chunk, padded));
    }

    private Tensor Empty(ReformerContext context, TensorShape shape, DType type = DType.Float32)
    {
        var tensor = new Tensor(context, shape, type);
        _tensors.Add(tensor);
        return tensor;
    }

    private Tensor Normal(ReformerContext context, TensorShape shape, ulong seed)
    {
        Tensor tensor = Empty(context, shape);
        Measure.Normal(context, tensor, seed + (ulong)_tensors.Count);
        return tensor;
    }
}
