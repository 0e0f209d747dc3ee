using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Cli.Report;

/// <summary>One causal attention on random numbers, dense (0 rounds) or LSH in the form trax.</summary>
internal sealed class AttentionRun : IDisposable
{
    private readonly List<Tensor> _tensors = [];
    private readonly Workspace _workspace;
    private readonly Attention _op;

    public AttentionRun(ReformerContext context, int rounds, int length, int batch, int heads, int headSize, int chunk)
    {
        bool dense = rounds == 0;
        long padded = (length + (long)chunk - 1) / chunk * chunk;
        AttentionPreset trax = AttentionPreset.Trax;
        AttentionOptions options = dense
            ? AttentionOptions.Full(causal: true)
            : AttentionOptions.Lsh(trax, causal: true, chunk, rounds, BucketFactors.Automatic(trax.Buckets, padded, chunk, padded));
        var shape = new TensorShape(batch, length, heads, headSize);
        _workspace = new Workspace(context);
        _op = new Attention
        {
            Options = options,
            Q = Normal(context, shape),
            K = dense ? Normal(context, shape) : default,
            V = Normal(context, shape),
            Rotations = dense ? default : Normal(context, options.RotationsShape(RotationScope.PerHead, batch, heads, headSize)),
            Out = Empty(context, shape),
            Lse = Empty(context, new TensorShape(batch, heads, length)),
            GradOut = Normal(context, shape),
            GradQ = Empty(context, shape),
            GradK = dense ? Empty(context, shape) : default,
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

    private Tensor Empty(ReformerContext context, TensorShape shape)
    {
        var tensor = new Tensor(context, shape);
        _tensors.Add(tensor);
        return tensor;
    }

    private Tensor Normal(ReformerContext context, TensorShape shape)
    {
        Tensor tensor = Empty(context, shape);
        Measure.Normal(context, tensor, (ulong)_tensors.Count);
        return tensor;
    }
}
