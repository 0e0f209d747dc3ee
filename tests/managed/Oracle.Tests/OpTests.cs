namespace ReformerNative.Oracle.Tests;

public sealed class OpTests
{
    private static readonly Randomness s_randomness = new(9, 4, 2);

    [TestCase(0.0, 0.0)]
    [TestCase(0.5, 0.52049987781304653768)]
    [TestCase(-1.0, -0.84270079294971486934)]
    [TestCase(3.0, 0.99997790950300141456)]
    public void Erf_KnownArguments_GivesKnownValues(double x, double expected) =>
        Assert.That(Activations.Erf(x), Is.EqualTo(expected).Within(1e-15));

    [Test]
    public void Linear_EveryActivation_EqualsFiniteDifferences([Values] Activation activation, [Values] bool hasBias)
    {
        var random = new Random((int)activation);
        double[] x = random.Normals(7 * 3), w = random.Normals(5 * 3), upstream = random.Normals(7 * 5);
        var bias = hasBias ? random.Normals(5) : null;
        var g = Linear.Backward(x, w, bias, 3, upstream, activation);
        Assert.That(g.Bias is null, Is.EqualTo(!hasBias));
        new FiniteDifferences(random).Check(
            () => Dot(Linear.Forward(x, w, bias, 3, activation), upstream), ("x", x, g.X), ("weight", w, g.Weight),
            ("bias", bias ?? [], g.Bias ?? []));
    }

    [Test]
    public void LayerNorm_RandomRows_EqualsFiniteDifferences()
    {
        var random = new Random(1);
        double[] x = random.Normals(5 * 7),
            w = random.Normals(7),
            bias = random.Normals(7),
            upstream = random.Normals(5 * 7);
        var g = LayerNorm.Backward(x, w, 1e-3, upstream);
        new FiniteDifferences(random).Check(() => Dot(LayerNorm.Forward(x, w, bias, 1e-3), upstream),
            ("x", x, g.X), ("weight", w, g.Weight), ("bias", bias, g.Bias));
    }

    [Test]
    public void FeedForward_WithDropout_EqualsFiniteDifferences([Values] Activation activation)
    {
        var random = new Random(2);
        var p = new FeedForwardParameters(
            random.Normals(11 * 3), random.Normals(11), random.Normals(3 * 11), random.Normals(3));
        double[] x = random.Normals(5 * 3),
            upstream = random.Normals(5 * 3);
        var (gradX, g) = FeedForward.Backward(x, p, activation, 0.3f, s_randomness, upstream);
        new FiniteDifferences(random).Check(
            () => Dot(FeedForward.Forward(x, p, activation, 0.3f, s_randomness), upstream), ("x", x, gradX),
            ("w1", p.W1, g.W1), ("b1", p.B1, g.B1), ("w2", p.W2, g.W2), ("b2", p.B2, g.B2));
    }

    // Axis sizes and widths; one axis is the learned table, none is no positions.
    [TestCase(new int[0], new int[0])]
    [TestCase(new[] { 20 }, new[] { 6 })]
    [TestCase(new[] { 4, 5 }, new[] { 2, 4 })]
    [TestCase(new[] { 2, 3, 4 }, new[] { 1, 3, 2 })]
    [TestCase(new[] { 2, 2, 2, 3 }, new[] { 1, 2, 1, 2 })]
    public void Embedding_EveryPositionKind_EqualsFiniteDifferencesAndDefinition(int[] sizes, int[] widths)
    {
        var random = new Random(3);
        var tables = new EmbeddingTables(
            6, random.Normals(8 * 6), [.. sizes.Zip(widths, (s, w) => random.Normals(s * w))], widths);
        var ids = random.Integers(2 * 9, 8);
        var upstream = random.Normals(2 * 9 * 6);
        var g = Embedding.Backward(tables, ids, 9, 7, 0.25f, s_randomness, upstream);
        new FiniteDifferences(random).Check(
            () => Dot(Embedding.Forward(tables, ids, 9, 7, 0.25f, s_randomness), upstream),
            [("word", tables.Word, g.Word), .. tables.Positions.Select((p, i) => ($"position {i}", p, g.Positions[i]))]
        );

        // The definition, by counting positions up like an odometer.
        var e = Embedding.Forward(tables, ids, 9, 7, 0, s_randomness);
        var coordinates = new int[sizes.Length];
        for (var position = 0; position < 16; position++)
        {
            for (int t = position - 7, at = 0, axis = 0; t >= 0 && axis < sizes.Length; at += widths[axis++])
            {
                for (var d = 0; d < widths[axis]; d++)
                {
                    var expected =
                        tables.Word[ids[t] * 6 + at + d] + tables.Positions[axis][coordinates[axis] * widths[axis] + d];
                    Assert.That(e[t * 6 + at + d], Is.EqualTo(expected));
                }
            }

            for (var axis = sizes.Length - 1; axis >= 0 && ++coordinates[axis] == sizes[axis]; axis--)
            {
                coordinates[axis] = 0;
            }
        }
    }

    [Test]
    public void FinalNorm_EveryCombination_EqualsFiniteDifferences([Values] Combine combine)
    {
        var random = new Random(4);
        var width = combine == Combine.Concatenate ? 10 : 5;
        double[] a = random.Normals(3 * 5),
            b = random.Normals(3 * 5),
            w = random.Normals(width),
            bias = random.Normals(width);
        double[] upstream = random.Normals(3 * width);
        var g = FinalNorm.Backward(combine, a, b, 5, w, 1e-6, 0.3f, s_randomness, upstream);
        new FiniteDifferences(random).Check(
            () => Dot(FinalNorm.Forward(combine, a, b, 5, w, bias, 1e-6, 0.3f, s_randomness), upstream),
            ("stream1", a, g.Stream1), ("stream2", b, g.Stream2), ("weight", w, g.Weight), ("bias", bias, g.Bias));
    }

    [TestCase(0.0, 0.0)]
    [TestCase(0.1, 0.0)]
    [TestCase(1.0, 13.0)]
    public void HeadLoss_IgnoredRowsAndSmoothing_EqualsFiniteDifferences(double smoothing, double normalizer)
    {
        var random = new Random(5);
        double[] x = random.Normals(6 * 4), w = random.Normals(7 * 4), bias = random.Normals(7);
        int[] labels = [0, -100, 6, 3, -100, 3];
        HeadLossResult Run() => HeadLoss.Run(x, w, bias, 4, labels, -100, smoothing, 2.5, normalizer);
        var result = Run();
        Assert.That(result.Statistics[1], Is.EqualTo(4));
        new FiniteDifferences(random).Check(() => 2.5 * Run().Statistics[0] / (normalizer == 0 ? 4 : normalizer),
            ("x", x, result.GradX), ("weight", w, result.GradWeight), ("bias", bias, result.GradBias!));
    }

    [Test]
    public void HeadLoss_EqualLogits_CountsTheFirstAsLargest()
    {
        var result = HeadLoss.Run([0, 0], [1, 1, 1], null, 1, [0, 1], -100);
        Assert.That(result.Statistics, Is.EqualTo(new[] { 2 * Math.Log(3), 2, 1 }).Within(1e-15));
    }

    [Test]
    public void AdamW_FirstStep_MovesByTheSignOfTheGradient()
    {
        double[] p = [1, -2], m = new double[2], v = new double[2];
        new AdamW(0.1, 0.9, 0.99, 0, 0.5).Update(1, p, [3, -4], m, v, scale: 0.5);
        Assert.That(p, Is.EqualTo(new[] { 1 - 0.1 * (1 + 0.5), -2 + 0.1 * (1 + 1) }).Within(1e-15));
        Assert.That(m, Is.EqualTo(new[] { 0.15, -0.2 }).Within(1e-15));
        Assert.That(v, Is.EqualTo(new[] { 0.0225, 0.04 }).Within(1e-15));

        // Second step by hand: m = .9 m + .1 g, v = .99 v + .01 g^2, corrections 1 - .9^2 and 1 - .99^2.
        var before = p[0];
        new AdamW(0.1, 0.9, 0.99, 1e-3, 0).Update(2, p, [1, 0], m, v);
        Assert.That(
            p[0], Is.EqualTo(before - 0.1 * (0.235 / 0.19) / (Math.Sqrt(0.032275 / 0.0199) + 1e-3)).Within(1e-14));
    }

    [Test]
    public void Adafactor_RankOneGradient_IsFactoredWithoutLoss()
    {
        // |g| = a b^T: the factored second moment equals g^2 itself, so the first update is the sign of g.
        double[] g = [2, -6, -4, 12], p = [1, 2, 3, 4], row = new double[2], column = new double[2];
        new Adafactor(0.1, 0.8, 1, 0, 1e-3, 0.2, false).Update(1, p, g, row, column);
        Assert.That(
            p, Is.EqualTo(new[] { 1 - 0.1 - 0.02, 2 + 0.1 - 0.04, 3 + 0.1 - 0.06, 4 - 0.1 - 0.08 }).Within(1e-14));
        Assert.That(row, Is.EqualTo(new[] { 20.0, 80 }).Within(1e-12));
        Assert.That(column, Is.EqualTo(new[] { 10.0, 90 }).Within(1e-12));
    }

    [Test]
    public void Adafactor_LargeUpdateAndScaledRate_AreClippedAndScaled()
    {
        // Second step with rho = 1 - 2^-0.8: u = g / sqrt(v), clipped to rms 1/2; alpha = lr * rms(p).
        double[] p = [3, 4], v = [1, 1];
        new Adafactor(0.1, 0.8, 0.5, 0, 1e-3, 0, true).Update(2, p, [2, 2], v, scale: 1);
        var u = 2 / Math.Sqrt(1 + Math.Pow(2, -0.8) * 3);
        Assert.That(u, Is.GreaterThan(0.5));
        var alpha = 0.1 * Math.Sqrt(12.5);
        Assert.That(p, Is.EqualTo(new[] { 3 - alpha * 0.5, 4 - alpha * 0.5 }).Within(1e-14));
    }

    [Test]
    public void GlobalNorm_ClippedUnclippedAndNotFinite_GivesScale()
    {
        Assert.That(GlobalNorm.Run([[3], [4.0]], 0), Is.EqualTo((5.0, 1.0)));
        Assert.That(GlobalNorm.Run([[3], [4.0]], 2), Is.EqualTo((5.0, 0.4)));
        Assert.That(GlobalNorm.Run([[3], [4.0]], 6), Is.EqualTo((5.0, 1.0)));
        Assert.That(GlobalNorm.Run([[double.NaN]], 6).Scale, Is.Zero);
    }

    [Test]
    public void Sampling_TopKAndTopP_KeepTheMostProbable()
    {
        double[] logits = [Math.Log(1), Math.Log(4), Math.Log(2), Math.Log(2), Math.Log(1)];
        Assert.That(Sampling.Distribution(logits, 1), Is.EqualTo(new[] { 0.1, 0.4, 0.2, 0.2, 0.1 }).Within(1e-15));
        Assert.That(Sampling.Distribution(logits, 0), Is.EqualTo(new[] { 0.0, 1, 0, 0, 0 }));
        Assert.That(Sampling.Distribution(logits, 1, 2), Is.EqualTo(new[] { 0, 2 / 3.0, 1 / 3.0, 0, 0 }).Within(1e-15));
        Assert.That(
            Sampling.Distribution(logits, 1, 0, 0.5), Is.EqualTo(new[] { 0, 2 / 3.0, 1 / 3.0, 0, 0 }).Within(1e-15));
        Assert.That(
            Sampling.Distribution(logits, 0.5),
            Is.EqualTo(new[] { 1 / 26.0, 16 / 26.0, 4 / 26.0, 4 / 26.0, 1 / 26.0 }).Within(1e-15));
    }

    private static double Dot(double[] a, double[] b) => a.Zip(b, (x, y) => x * y).Sum();
}
