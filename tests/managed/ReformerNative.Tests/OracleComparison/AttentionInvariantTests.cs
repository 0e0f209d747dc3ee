using ReformerNative.Oracle;
using Native = ReformerNative.Ops;

namespace ReformerNative.Tests.OracleComparison;

/// <summary>What holds bit for bit, whatever the numbers.</summary>
public sealed class AttentionInvariantTests
{
    private const int Tokens = 41, Heads = 2, HeadSize = 9, Size = Tokens * Heads * HeadSize;

    private static readonly AttentionOptions s_strict = new()
    {
        Kind = AttentionKind.Lsh,
        SharedQk = true,
        Causal = true,
        KeyNorm = KeyNorm.Rms,
        Rounds = 4,
        Window = LshWindow.Strict,
        LogCount = true,
        Factors = [4],
        ChunkLength = 8,
        ChunksBefore = 1,
        PadBucket = true,
        Dropout = 0.1f,
    };

    /// <summary>Without dropout: its pattern is a function of sorted slots, which count later tokens too.</summary>
    [Test]
    public void StrictWindow_TokenChanged_NoBitBeforeItChanges()
    {
        int later = 0;
        for (int t = 0; t < Tokens; t++)
        {
            var random = new Random(1);
            double[] q = random.Normals(Size), v = random.Normals(Size), rotations = random.Normals(HeadSize * 4 * 2);
            var options = s_strict with { Dropout = 0 };
            float[] before = Forward(options, q, v, null, rotations);
            random.Normals(Heads * HeadSize, 3).CopyTo(q, t * Heads * HeadSize);
            random.Normals(Heads * HeadSize, 3).CopyTo(v, t * Heads * HeadSize);
            float[] after = Forward(options, q, v, null, rotations);
            int start = t * Heads * HeadSize;
            Assert.That(after[..start], Is.EqualTo(before[..start]), $"outputs before token {t}");
            later += Enumerable.Range(start, Size - start).Count(i => after[i] != before[i]);
        }

        Assert.That(later, Is.GreaterThan(Size), "changes must show in the tokens themselves and behind them");
    }

    [Test]
    public void MaskedTokens_ContentChanged_NoBitOfOthersChanges([Values] AttentionKind kind)
    {
        var options = s_strict with
        {
            Kind = kind,
            Causal = false,
            Window = LshWindow.Slots,
            ChunksAfter = 1,
            Wrap = true,
        };
        var random = new Random(2);
        double[] q = random.Normals(Size), v = random.Normals(Size), rotations = random.Normals(HeadSize * 4 * 2);
        bool[] mask = random.Mask(Tokens);
        float[] before = Forward(options, q, v, mask, rotations);
        for (int i = 0; i < Size; i++)
        {
            if (!mask[i / Heads / HeadSize])
            {
                q[i] = float.MaxValue;
                v[i] = double.NaN;
            }
        }

        Assert.That(Forward(options, q, v, mask, rotations), Is.EqualTo(before));
        Assert.That(before.Where((_, i) => !mask[i / Heads / HeadSize]), Is.All.Zero);
    }

    [Test]
    public void Attention_AnyNumberOfThreads_GivesTheSameBits()
    {
        var random = new Random(3);
        double[] q = random.Normals(Size), v = random.Normals(Size), rotations = random.Normals(HeadSize * 4 * 2);
        float[] one = Forward(s_strict, q, v, null, rotations, threads: 1);
        foreach (int threads in new[] { 2, 3, 8 })
        {
            Assert.That(Forward(s_strict, q, v, null, rotations, threads), Is.EqualTo(one), $"{threads} threads");
        }
    }

    /// <summary>
    /// Scores of hundreds, beyond what exp can hold in float32; their own rounding, 2^-23 of them, is all that may be
    /// added.
    /// </summary>
    [Test]
    public void Attention_LargeScores_EqualsOracle([Values] AttentionKind kind)
    {
        var random = new Random(5);
        double[] q = random.Normals(Size, 150), v = random.Normals(Size), rotations = random.Normals(HeadSize * 4 * 2);
        var options = s_strict with { Kind = kind, Window = LshWindow.Slots };
        var shape = new AttentionShape(1, Tokens, Heads, HeadSize);
        int[]? buckets = kind == AttentionKind.Lsh ? Lsh.Hash(options, shape, q, null, rotations) : null;
        var expected = Attention.Forward(options, new(shape, q, null, v, null, buckets), new(3, 0, 0));
        double largest = expected.LogSumExp.Where(double.IsFinite).Max();
        Assert.That(largest, Is.GreaterThan(200));
        double limit = (NativeRun.ForwardLimit + Math.ScaleB(largest, -23)) * expected.Out.Max(Math.Abs);
        Assert.That(
            Forward(options, q, v, null, rotations).Select(x => (double)x), Is.EqualTo(expected.Out).Within(limit));
    }

    /// <summary>
    /// One chunk holds everything, so that every round sees every pair: rounds, buckets and duplicate counts change
    /// nothing.
    /// </summary>
    [Test]
    public void LshAttention_WindowCoversAll_EqualsFullAttention([Values(1, 2, 5)] int rounds, [Values] bool logCount)
    {
        var random = new Random(4);
        double[] q = random.Normals(Size), v = random.Normals(Size), rotations = random.Normals(HeadSize * rounds * 2);
        bool[] mask = random.Mask(Tokens);
        var lsh = s_strict with
        {
            Window = LshWindow.Slots,
            Rounds = rounds,
            LogCount = logCount,
            ChunkLength = 48,
            ChunksBefore = 0,
            Dropout = 0,
        };
        double[] dense =
        [
            .. Forward(lsh with { Kind = AttentionKind.Full }, q, v, mask, rotations).Select(x => (double)x),
        ];
        double limit = NativeRun.ForwardLimit * dense.Max(Math.Abs);
        Assert.That(Forward(lsh, q, v, mask, rotations).Select(x => (double)x), Is.EqualTo(dense).Within(limit));
    }

    private static float[] Forward(
        AttentionOptions options, double[] q, double[] v, bool[]? mask, double[] rotations, int threads = 2)
    {
        using var run = new NativeRun(threads);
        long[] shape = [1, Tokens, Heads, HeadSize];
        bool isLsh = options.Kind == AttentionKind.Lsh;
        var native = new Native.Attention
        {
            Options = AttentionCase.ToNative(options),
            Seed = 3,
            Q = run.Input(q, shape),
            V = run.Input(v, shape),
            Mask = run.Input(mask, 1, Tokens),
            Rotations = isLsh ? run.Input(rotations, 1, HeadSize, options.Rounds, 2) : default,
            Out = run.Output(shape),
            LogSumExp = run.Output(1, Heads, Tokens),
        };
        native.Forward(run.Workspace);
        run.CheckMemory();
        return native.Out.ToArray<float>();
    }
}
