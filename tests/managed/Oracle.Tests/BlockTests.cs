namespace ReformerNative.Oracle.Tests;

public sealed class BlockTests
{
    private static IEnumerable<TestCaseData> Kinds()
    {
        var lsh = new AttentionOptions
        {
            Kind = AttentionKind.Lsh,
            SharedQk = true,
            Causal = true,
            KeyNorm = KeyNorm.Rms,
            Rounds = 2,
            Factors = [4],
            ChunkLength = 4,
            ChunksBefore = 1,
            Wrap = true,
            Dropout = 0.2f,
            PadBucket = true,
        };
        yield return new TestCaseData(lsh, true).SetArgDisplayNames("lsh masked");
        yield return new TestCaseData(
            lsh with
            {
                Window = LshWindow.Strict,
                LogCount = true,
            },
            false
        ).SetArgDisplayNames("lsh strict");
        var local = new AttentionOptions
        {
            Kind = AttentionKind.Local,
            Causal = true,
            ChunkLength = 4,
            ChunksBefore = 1,
            Dropout = 0.2f,
        };
        yield return new TestCaseData(local, false).SetArgDisplayNames("local");
        yield return new TestCaseData(
            new AttentionOptions { Kind = AttentionKind.Full, Dropout = 0.2f }, true).SetArgDisplayNames("full masked");
    }

    [TestCaseSource(nameof(Kinds))]
    public void Backward_AllDropoutsOn_EqualsFiniteDifferences(AttentionOptions attention, bool masked)
    {
        // The exact grid is made so fine that rounding to it is below the quotient's own noise.
        foreach (var exponent in new int?[] { null, -46 })
        {
            var random = new Random(1);
            var (options, p) = Create(random, attention, exponent);
            double[] x1 = random.Normals(2 * 9 * 6),
                x2 = random.Normals(2 * 9 * 6),
                up1 = random.Normals(2 * 9 * 6),
                up2 = random.Normals(2 * 9 * 6);
            var mask = masked ? random.Mask(18) : null;
            var rotations = random.Normals(2 * 3 * 2 * 2);
            var buckets = Block.Forward(options, p, x1, x2, mask, rotations).Buckets;
            double Loss()
            {
                var y = Block.Forward(options, p, x1, x2, mask, null, buckets);
                return y.First.Zip(up1, (a, b) => a * b).Sum() + y.Second.Zip(up2, (a, b) => a * b).Sum();
            }

            var (inputs, g) = Block.Backward(options, p, x1, x2, up1, up2, mask, null, buckets);
            new FiniteDifferences(random).Check(Loss,
            [
                ("x1", x1, inputs.First), ("x2", x2, inputs.Second),
                .. p.Tensors.Zip(g.Tensors).Where(pair => pair.First.Values is not null)
                    .Select(pair => (pair.First.Name, pair.First.Values!, pair.Second.Values!)),
            ]);
        }
    }

    [TestCaseSource(nameof(Kinds))]
    public void Inverse_ExactResidual_GivesBackTheSameBits(AttentionOptions attention, bool masked)
    {
        var random = new Random(2);
        var (options, p) = Create(random, attention, -16);
        double[] x1 = [.. random.Normals(2 * 9 * 6).Select(value => Grid.Round(value, -16))];
        double[] x2 = [.. random.Normals(2 * 9 * 6).Select(value => Grid.Round(value, -16))];
        var mask = masked ? random.Mask(18) : null;
        var rotations = random.Normals(2 * 3 * 2 * 2);
        var y = Block.Forward(options, p, x1, x2, mask, rotations);
        var plain = Block.Forward(options with { GridExponent = null }, p, x1, x2, mask, rotations);
        var x = Block.Inverse(options, p, y.First, y.Second, mask, rotations);
        Assert.That(x.First, Is.EqualTo(x1));
        Assert.That(x.Second, Is.EqualTo(x2));
        Assert.That(x.Buckets, Is.EqualTo(y.Buckets));
        Assert.That(y.First, Is.EqualTo(plain.First).Within(Math.ScaleB(1, -17)));
        Assert.That(
            y.First.Concat(y.Second).Select(v => Math.ScaleB(v, 16)).Select(v => v - Math.Round(v)), Is.All.Zero);
    }

    private static (BlockOptions Options, BlockParameters Parameters) Create(
        Random random, AttentionOptions attention, int? gridExponent)
    {
        var options = new BlockOptions
        {
            Attention = attention,
            Batch = 2,
            Tokens = 9,
            Width = 6,
            Heads = 2,
            Activation = Activation.GeluErf,
            LayerNormEpsilon = 1e-6,
            AttentionOutputDropout = 0.1f,
            FeedForwardDropout = 0.15f,
            GridExponent = gridExponent,
            Randomness = new(3, 8, 5),
        };
        var p = new BlockParameters
        {
            AttentionNormWeight = random.Normals(6, 0.3, 1),
            AttentionNormBias = random.Normals(6),
            Query = random.Normals(6 * 6),
            Key = attention.SharedQk ? null : random.Normals(6 * 6),
            Value = random.Normals(6 * 6),
            Output = random.Normals(6 * 6),
            OutputBias = attention.SharedQk ? random.Normals(6) : null,
            FeedForwardNormWeight = random.Normals(6, 0.3, 1),
            FeedForwardNormBias = random.Normals(6),
            FeedForward = new(random.Normals(7 * 6), random.Normals(7), random.Normals(6 * 7), random.Normals(6)),
        };
        return (options, p);
    }
}
