using ReformerNative.Oracle;
using ReformerNative.Tensors;
using Native = ReformerNative.Ops;

namespace ReformerNative.Tests.OracleComparison;

/// <summary>Inputs of one comparison of attention.</summary>
internal sealed record AttentionCase
{
    public required AttentionOptions Options { get; init; }
    public int Seed { get; init; }
    public int Batch { get; init; } = 2;
    public int Tokens { get; init; } = 33;
    public int Heads { get; init; } = 2;
    public int HeadSize { get; init; } = 8;
    public int HeadGroup { get; init; }
    public int Threads { get; init; } = 1;

    /// <summary>1, Heads or Batch * Heads.</summary>
    public int RotationSets { get; init; } = 1;
    public bool[]? Mask { get; init; }

    public AttentionShape Shape => new(Batch, Tokens, Heads, HeadSize);

    private bool IsLsh => Options.Kind == AttentionKind.Lsh;

    public static Native.AttentionOptions ToNative(AttentionOptions o) => new()
    {
        Kind = (Native.AttentionKind)o.Kind,
        SharedQk = o.SharedQk,
        Causal = o.Causal,
        Window = (Native.AttentionWindow)o.Window,
        Wrap = o.Wrap,
        RepeatChunks = o.RepeatChunks,
        Duplicates = o.LogCount ? Native.DuplicateCorrection.LogCount : Native.DuplicateCorrection.None,
        KeyNorm = (Native.KeyNorm)o.KeyNorm,
        Rounds = o.Rounds,
        Factors = new([.. o.Factors]),
        PadBucket = o.PadBucket,
        ChunksBefore = o.ChunksBefore,
        ChunksAfter = o.ChunksAfter,
        LogitScale = (float)o.LogitScale,
        Dropout = o.Dropout,
        ChunkLength = o.ChunkLength,
        PaddedLength = o.PaddedLength,
    };

    /// <summary>Runs the whole op and, for LSH, its stages; compares everything with the oracle.</summary>
    public void Check()
    {
        var random = new Random(Seed);
        double[] q = random.Normals(Shape.Size), v = random.Normals(Shape.Size), gradOut = random.Normals(Shape.Size);
        double[]? k = Options.SharedQk ? null : random.Normals(Shape.Size);
        double[]? rotations = IsLsh
            ? random.Normals(RotationSets * HeadSize * Options.Rounds * Options.Factors.Sum() / 2)
            : null;
        var randomness = new Randomness((ulong)Seed + (7UL << 40), 3, 4);

        using var run = new NativeRun(Threads);
        long[] shape = [Batch, Tokens, Heads, HeadSize], perQuery = [Batch, Heads, Tokens];
        var whole = new Native.Attention
        {
            Options = ToNative(Options),
            Layer = randomness.Layer,
            Seed = randomness.Seed,
            Step = randomness.Step,
            Q = run.Input(q, shape),
            K = run.Input(k, shape),
            V = run.Input(v, shape),
            Mask = run.Input(Mask, Batch, Tokens),
            Rotations = run.Input(rotations, RotationSets, HeadSize, Options.Rounds, Options.Factors.Sum() / 2),
            Buckets = IsLsh ? run.OutputIntegers(Batch, Heads, Options.Rounds, Tokens) : default,
            Out = run.Output(shape),
            LogSumExp = run.Output(perQuery),
            GradOut = run.Input(gradOut, shape),
            GradQ = run.Output(shape),
            GradK = Options.SharedQk ? default : run.Output(shape),
            GradV = run.Output(shape),
            HeadGroup = HeadGroup,
        };
        whole.Forward(run.Workspace);
        int[]? buckets = IsLsh ? CheckBuckets(whole.Buckets, q, rotations!) : null;
        var input = new AttentionInput(Shape, q, k, v, Mask, buckets);
        var expected = Attention.Forward(Options, input, randomness);
        NativeRun.Expect("attention.out", whole.Out, expected.Out, NativeRun.ForwardLimit);
        NativeRun.Expect("attention.log_sum_exp", whole.LogSumExp, expected.LogSumExp, NativeRun.ForwardLimit);

        whole.Backward(run.Workspace);
        var gradients = Attention.Backward(Options, input, randomness, gradOut);
        CheckGradients("attention", whole, input, gradOut, gradients);
        if (IsLsh)
        {
            CheckHashedAgain(run, whole);
            CheckStages(run, whole, input, randomness, gradOut, gradients);
        }

        run.CheckMemory();
    }

    private static double LargestNorm(double[] values, int size) =>
        values.Chunk(size).Max(row => Math.Sqrt(row.Sum(x => x * x)));

    /// <summary>
    /// A query that meets one key has the gradient 0 as the difference of two equal products dO.v. float32 rounds both,
    /// and what is left reaches q through the keys, and the keys' source through q and the key norm.
    /// </summary>
    private (double Query, double Key) CancellationFloors(AttentionInput input, double[] gradOut)
    {
        double scale = Options.LogitScale == 0 ? 1 / Math.Sqrt(HeadSize) : Options.LogitScale;
        double product = Math.ScaleB(scale * LargestNorm(gradOut, HeadSize) * LargestNorm(input.V, HeadSize), -23);
        double[] source = input.K ?? input.Q, keys = KeyNorms.Apply(source, HeadSize, Options.KeyNorm);
        double factor = keys.Zip(source, (key, x) => Math.Abs(key / x)).Max();
        double query = product * keys.Max(Math.Abs), key = product * factor * input.Q.Max(Math.Abs);
        return Options.SharedQk ? (query + key, 0) : (query, key);
    }

    private void CheckGradients(
        string op, Native.Attention native, AttentionInput input, double[] gradOut, AttentionGradients gradients)
    {
        var (queryFloor, keyFloor) = CancellationFloors(input, gradOut);
        NativeRun.Expect($"{op}.grad_q", native.GradQ, gradients.Q, NativeRun.GradientLimit, queryFloor);
        NativeRun.Expect($"{op}.grad_v", native.GradV, gradients.V, NativeRun.GradientLimit);
        if (gradients.K is not null)
        {
            NativeRun.Expect($"{op}.grad_k", native.GradK, gradients.K, NativeRun.GradientLimit, keyFloor);
        }
    }

    /// <summary>
    /// Buckets must be the oracle's wherever float32 can tell the best score from the second. Returns the native ones.
    /// </summary>
    private int[] CheckBuckets(TensorView actual, double[] q, double[] rotations)
    {
        var (expected, margins) = Lsh.HashWithMargin(Options, Shape, q, Mask, rotations);
        int[] buckets = actual.ToArray<int>();
        for (int i = 0; i < buckets.Length; i++)
        {
            if (margins[i] > 1e-5 && buckets[i] != expected[i])
            {
                Assert.Fail($"bucket {i} is {buckets[i]}, expected {expected[i]}, ahead by {margins[i]:e1}");
            }
        }

        Assert.That(
            buckets.Zip(expected).Count(pair => pair.First != pair.Second),
            Is.LessThanOrEqualTo(1 + (buckets.Length / 1000)));
        return buckets;
    }

    /// <summary>A backward pass without buckets hashes again and comes to the same bits.</summary>
    private void CheckHashedAgain(NativeRun run, Native.Attention whole)
    {
        long[] shape = [Batch, Tokens, Heads, HeadSize];
        var again = whole with { Buckets = default, GradQ = run.Output(shape), GradV = run.Output(shape) };
        again.Backward(run.Workspace);
        NativeRun.ExpectSameBits(
            "grad_q of a backward pass that hashes again", again.GradQ, whole.GradQ.ToArray<float>());
        NativeRun.ExpectSameBits(
            "grad_v of a backward pass that hashes again", again.GradV, whole.GradV.ToArray<float>());
    }

    private void CheckStages(
        NativeRun run, Native.Attention whole, AttentionInput input, Randomness randomness, double[] gradOut,
        AttentionGradients gradients)
    {
        long[] shape = [Batch, Tokens, Heads, HeadSize];
        var stages = whole with
        {
            Buckets = run.OutputIntegers(Batch, Heads, Options.Rounds, Tokens),
            Sorted = run.OutputIntegers(Batch, Heads, Options.Rounds, Options.Padded(Tokens)),
            RoundOut = run.Output(Options.Rounds * Batch, Tokens, Heads, HeadSize),
            RoundLogSumExp = run.Output(Options.Rounds, Batch, Heads, Tokens),
            Out = run.Output(shape),
            LogSumExp = run.Output(Batch, Heads, Tokens),
            GradQ = run.Output(shape),
            GradV = run.Output(shape),
            GradRoundOut = run.Output(Options.Rounds * Batch, Tokens, Heads, HeadSize),
            GradRoundLogSumExp = run.Output(Options.Rounds, Batch, Heads, Tokens),
        };
        stages.Hash(run.Workspace);
        NativeRun.ExpectSameBits("hash", stages.Buckets, input.Buckets!);
        stages.Sort(run.Workspace);
        NativeRun.ExpectSameBits("sort", stages.Sorted, Lsh.Sort(Options, Shape, input.Buckets!));

        stages.Attend(run.Workspace);
        var each = Attention.Attend(Options, input, randomness);
        NativeRun.Expect("attend.round_out", stages.RoundOut, each.Out, NativeRun.ForwardLimit);
        NativeRun.Expect("attend.round_log_sum_exp", stages.RoundLogSumExp, each.LogSumExp, NativeRun.ForwardLimit);

        stages.Combine(run.Workspace);
        var combined = Attention.Combine(Shape, Options.Rounds, each);
        NativeRun.Expect("combine.out", stages.Out, combined.Out, NativeRun.ForwardLimit);
        NativeRun.Expect("combine.log_sum_exp", stages.LogSumExp, combined.LogSumExp, NativeRun.ForwardLimit);

        stages.CombineBackward(run.Workspace);
        var gradEach = Attention.CombineBackward(Shape, Options.Rounds, each, gradOut);
        NativeRun.Expect("combine.grad_round_out", stages.GradRoundOut, gradEach.Out, NativeRun.GradientLimit);

        // One round with keys has the whole weight: a difference of two equal products dO.o.
        double floor = Math.ScaleB(LargestNorm(gradOut, HeadSize) * LargestNorm(each.Out, HeadSize), -23);
        NativeRun.Expect(
            "combine.grad_round_log_sum_exp", stages.GradRoundLogSumExp, gradEach.LogSumExp, NativeRun.GradientLimit,
            floor);

        stages.AttendBackward(run.Workspace);
        CheckGradients("attend", stages, input, gradOut, gradients);
    }
}
