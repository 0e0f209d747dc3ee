using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Benchmarks;

/// <summary>
/// The same random attention of one example, for the native op and for <see cref="TensorAttention"/>.
/// </summary>
internal sealed class AttentionProblem : IDisposable
{
    private readonly List<Tensor> _tensors = [];
    private readonly Workspace _workspace;
    private readonly Attention _op;
    private readonly TensorAttention _managed;
    private readonly float[] _q;
    private readonly float[] _k;
    private readonly float[] _v;
    private readonly float[] _rotations;
    private readonly float[] _gradOut;

    public AttentionProblem(ReformerContext context, AttentionOptions options, int length, int heads, int headSize)
    {
        var shape = new TensorShape(1, length, heads, headSize);
        bool isLsh = options.Kind == AttentionKind.Lsh;
        _workspace = new Workspace(context);
        Tensor q = Normal(context, shape);
        Tensor? k = isLsh ? null : Normal(context, shape);
        Tensor v = Normal(context, shape);
        Tensor? rotations = isLsh
            ? Normal(context, options.RotationsShape(RotationScope.PerHead, 1, heads, headSize))
            : null;
        Tensor gradOut = Normal(context, shape);
        Out = Zeros(context, shape);
        LogSumExp = Zeros(context, new TensorShape(1, heads, length));
        GradQ = Zeros(context, shape);
        GradK = isLsh ? null : Zeros(context, shape);
        GradV = Zeros(context, shape);
        _op = new Attention
        {
            Options = options,
            Q = q,
            K = k,
            V = v,
            Rotations = rotations,
            Out = Out,
            LogSumExp = LogSumExp,
            GradOut = gradOut,
            GradQ = GradQ,
            GradK = GradK,
            GradV = GradV,
        };
        _q = q.ToArray<float>();
        _k = k?.ToArray<float>() ?? [];
        _v = v.ToArray<float>();
        _rotations = rotations?.ToArray<float>() ?? [];
        _gradOut = gradOut.ToArray<float>();
        ManagedOut = new float[_q.Length];
        ManagedLogSumExp = new float[heads * length];
        ManagedGradQ = new float[_q.Length];
        ManagedGradK = new float[_k.Length];
        ManagedGradV = new float[_q.Length];
        _managed = new TensorAttention(options, length, heads, headSize, context.Threads);
    }

    public Tensor Out { get; }

    public Tensor LogSumExp { get; }

    public Tensor GradQ { get; }

    public Tensor? GradK { get; }

    public Tensor GradV { get; }

    public float[] ManagedOut { get; }

    public float[] ManagedLogSumExp { get; }

    public float[] ManagedGradQ { get; }

    public float[] ManagedGradK { get; }

    public float[] ManagedGradV { get; }

    /// <summary>LSH attention in the form trax, with its automatic number of buckets.</summary>
    public static AttentionOptions Lsh(int length, int chunk, int rounds, bool causal)
    {
        int padded = (length + chunk - 1) / chunk * chunk;
        return AttentionOptions.Lsh(
            AttentionPreset.Trax, causal, chunk, rounds,
            BucketFactors.Automatic(AttentionPreset.Trax.Buckets, padded, chunk, padded));
    }

    public void Native(bool backward)
    {
        _op.Forward(_workspace);
        if (backward)
        {
            _op.Backward(_workspace);
        }
    }

    public void Managed(bool backward)
    {
        _managed.Forward(_q, _k, _v, _rotations, ManagedOut, ManagedLogSumExp);
        if (backward)
        {
            _managed.Backward(
                _q, _k, _v, ManagedOut, ManagedLogSumExp, _gradOut, ManagedGradQ, ManagedGradK, ManagedGradV);
        }
    }

    public void Dispose()
    {
        _tensors.ForEach(tensor => tensor.Dispose());
        _workspace.Dispose();
    }

    private Tensor Zeros(ReformerContext context, TensorShape shape)
    {
        Tensor tensor = context.Zeros(shape);
        _tensors.Add(tensor);
        return tensor;
    }

    private Tensor Normal(ReformerContext context, TensorShape shape)
    {
        Tensor tensor = Zeros(context, shape);
        new RandomNormal
        {
            Site = RandomSite.Data,
            Seed = (ulong)_tensors.Count,
            StandardDeviation = 1,
            Destination = tensor,
        }.Run(context);
        return tensor;
    }
}
