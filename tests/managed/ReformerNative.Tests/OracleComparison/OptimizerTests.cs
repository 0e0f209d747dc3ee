using ReformerNative.Oracle;
using Native = ReformerNative.Ops;

namespace ReformerNative.Tests.OracleComparison;

/// <summary>Optimizers, gradient norm, random numbers, sampling and automatic buckets against the oracle.</summary>
public sealed class OptimizerTests
{
    private const double UpdateLimit = 2e-6;

    [Test]
    public void AdamW_SeveralSteps_EqualsOracle([Values(1, 31, 33, 1025)] int size, [Values] bool isClipped)
    {
        var random = new Random(size);
        double[] parameter = random.Normals(size), moment1 = new double[size], moment2 = new double[size];
        using var run = new NativeRun();
        var (p, m, v) = (run.InPlace(parameter, size), run.InPlace(moment1, size), run.InPlace(moment2, size));
        for (int step = 1; step <= 5; step++)
        {
            double[] gradient = random.Normals(size, 0.1);
            new Native.AdamW
            {
                LearningRate = 0.01f,
                Beta1 = 0.9f,
                Beta2 = 0.98f,
                Epsilon = 1e-6f,
                WeightDecays = [0.1f],
                Step = step,
                Parameters = [p],
                Gradients = [run.Input(gradient, size)],
                Moments1 = [m],
                Moments2 = [v],
                Clip = isClipped ? run.Input([123.0, 0.25], 2) : default,
            }.Run(run.Context);
            new AdamW(0.01f, 0.9f, 0.98f, 1e-6f, 0.1f).Update(
                step, parameter, gradient, moment1, moment2, isClipped ? 0.25 : 1);
        }

        NativeRun.Expect("adamw.parameter", p, parameter, UpdateLimit);
        NativeRun.Expect("adamw.moment1", m, moment1, UpdateLimit);
        NativeRun.Expect("adamw.moment2", v, moment2, UpdateLimit);
        run.CheckMemory();
    }

    [TestCase(1)]
    [TestCase(33)]
    [TestCase(1, 1)]
    [TestCase(31, 33)]
    [TestCase(33, 1)]
    [TestCase(3, 5, 33)]
    [TestCase(2, 3, 5, 7)]
    public void Adafactor_SeveralSteps_EqualsOracle(params int[] shape)
    {
        foreach (bool isScaled in new[] { false, true })
        {
            int size = shape.Aggregate((a, b) => a * b), columns = shape[^1], rows = size / columns;
            bool isFactored = shape.Length > 1;
            long[] nativeShape = [.. shape.Select(s => (long)s)];
            var random = new Random(size);
            double[] parameter = random.Normals(size),
                row = new double[rows],
                column = new double[columns],
                moment2 = new double[size];
            using var run = new NativeRun();
            var p = run.InPlace(parameter, nativeShape);
            var r = isFactored ? run.InPlace(row, rows) : default;
            var c = isFactored ? run.InPlace(column, columns) : default;
            var v = isFactored ? default : run.InPlace(moment2, size);
            for (int step = 1; step <= 5; step++)
            {
                // The second step's gradient is large enough for the update to be clipped.
                double[] gradient = random.Normals(size, step == 2 ? 10 : 0.1);
                new Native.Adafactor
                {
                    LearningRate = 0.01f,
                    DecayExponent = 0.8f,
                    ClipThreshold = 1,
                    Epsilon1 = 1e-30f,
                    Epsilon2 = 1e-3f,
                    WeightDecays = [0.1f],
                    ScaleParameter = isScaled,
                    Step = step,
                    Parameters = [p],
                    Gradients = [run.Input(gradient, nativeShape)],
                    Rows = [r],
                    Columns = [c],
                    Moments2 = [v],
                    Clip = isScaled ? run.Input([123.0, 0.25], 2) : default,
                }.Run(run.Workspace);
                var truth = new Adafactor(0.01f, 0.8f, 1, 1e-30f, 1e-3f, 0.1f, isScaled);
                if (isFactored)
                {
                    truth.Update(step, parameter, gradient, row, column, isScaled ? 0.25 : 1);
                }
                else
                {
                    truth.Update(step, parameter, gradient, moment2, isScaled ? 0.25 : 1);
                }
            }

            NativeRun.Expect("adafactor.parameter", p, parameter, UpdateLimit);
            if (isFactored)
            {
                NativeRun.Expect("adafactor.row", r, row, UpdateLimit);
                NativeRun.Expect("adafactor.column", c, column, UpdateLimit);
            }
            else
            {
                NativeRun.Expect("adafactor.moment2", v, moment2, UpdateLimit);
            }

            run.CheckMemory();
        }
    }

    [TestCase(0f)]
    [TestCase(1f)]
    [TestCase(1e6f)]
    public void GlobalNorm_SeveralTensors_EqualsOracle(float maxNorm)
    {
        var random = new Random(1);
        double[][] gradients = [random.Normals(1), random.Normals(33 * 31), random.Normals(70001), random.Normals(5)];
        using var run = new NativeRun();
        var native = new Native.GlobalNorm
        {
            MaxNorm = maxNorm,
            Gradients = [.. gradients.Select((g, i) => i == 1 ? run.Input(g, 33, 31) : run.Input(g, g.Length))],
            Result = run.Output(2),
        };
        native.Run(run.Workspace);
        var (norm, scale) = GlobalNorm.Run(gradients, maxNorm);
        Assert.That(native.Result.ToArray<float>(), Is.EqualTo(new[] { (float)norm, (float)scale }).Within(1).Ulps);
        run.CheckMemory();
    }

    [TestCase(float.NaN)]
    [TestCase(float.PositiveInfinity)]
    public void GlobalNorm_NotFinite_GivesScaleZero(float value)
    {
        using var run = new NativeRun();
        var native = new Native.GlobalNorm
        {
            MaxNorm = 1,
            Gradients = [run.Input([1.0, value, 2], 3)],
            Result = run.Output(2),
        };
        native.Run(run.Workspace);
        Assert.That(float.IsFinite(native.Result.ToArray<float>()[0]), Is.False);
        Assert.That(native.Result.ToArray<float>()[1], Is.Zero);
    }

    [Test]
    public void RandomNormal_EverySiteAndOddSizes_EqualsOracle([Values] Site site, [Values(1, 31, 33, 1027)] int size)
    {
        using var run = new NativeRun();
        var native = new Native.RandomNormal
        {
            Layer = 3,
            Seed = 5UL << 32 | 9,
            Step = 6,
            Site = (Native.RandomSite)site,
            Mean = 0.5f,
            StandardDeviation = 2,
            Destination = run.Output(size),
        };
        native.Run(run.Context);
        double[] expected =
        [
            .. Enumerable.Range(0, size).Select(i => 0.5 + (2 * Philox.Normal(new(5UL << 32 | 9, 6, 3), site, i))),
        ];
        NativeRun.Expect("random_normal", native.Destination, expected, UpdateLimit);
        run.CheckMemory();
    }

    [Test]
    public void AutomaticBuckets_ManyLengths_EqualsOracle([Values] BucketRule rule)
    {
        foreach (long chunk in new[] { 1, 4, 16, 64, 100 })
        {
            for (long length = 2 * chunk; length < 2_000_000; length += 2 * chunk * Math.Max(1, length / chunk / 9))
            {
                // lucidrains' rule has one factor, T div C, and is defined where that is even.
                int[] expected = Lsh.AutomaticBuckets(rule, length, chunk, 2 * length);
                var actual = Native.BucketFactors.Automatic((Native.BucketRule)rule, length, chunk, 2 * length);
                Assert.That(actual.ToArray(), Is.EqualTo(expected), $"{length} / {chunk}");
            }
        }
    }

    // Temperature, top k, top p.
    [TestCase(1f, 0, 1f)]
    [TestCase(0.7f, 0, 1f)]
    [TestCase(1f, 3, 1f)]
    [TestCase(1f, 0, 0.6f)]
    [TestCase(1.5f, 5, 0.8f)]
    [TestCase(1f, 1, 1f)]
    [TestCase(0f, 0, 1f)]
    public void Sample_ManyRows_HasTheOraclesDistribution(float temperature, int topK, float topP)
    {
        const int Rows = 20000, Vocabulary = 9;
        double[] logits = new Random(3).Normals(Vocabulary, 1.5);
        using var run = new NativeRun();
        var native = new Native.Sample
        {
            Temperature = temperature,
            TopK = topK,
            TopP = topP,
            Seed = 4,
            Step = 5,
            Logits = run.Input([.. Enumerable.Range(0, Rows).SelectMany(_ => logits)], Rows, Vocabulary),
            Ids = run.OutputIntegers(Rows),
        };
        native.Run(run.Workspace);
        int[] ids = native.Ids.ToArray<int>();
        var expected = Sampling.Distribution(logits, temperature, topK, topP);
        for (int id = 0; id < Vocabulary; id++)
        {
            double share = ids.Count(i => i == id) / (double)Rows, p = expected[id];

            // Five standard deviations of a binomial count; an id that is cut off never comes.
            Assert.That(share, Is.EqualTo(p).Within(5 * Math.Sqrt(p * (1 - p) / Rows)), $"id {id}");
        }

        var again = native with { Ids = run.OutputIntegers(Rows) };
        again.Run(run.Workspace);
        Assert.That(again.Ids.ToArray<int>(), Is.EqualTo(ids));
        var otherStep = native with { Step = 6, Ids = run.OutputIntegers(Rows) };
        otherStep.Run(run.Workspace);
        Assert.That(otherStep.Ids.ToArray<int>(), expected.Max() == 1 ? Is.EqualTo(ids) : Is.Not.EqualTo(ids));
        run.CheckMemory();
    }
}
