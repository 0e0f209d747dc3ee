using ReformerNative.Oracle;
using ReformerNative.Tensors;
using Native = ReformerNative.Ops;

namespace ReformerNative.Tests.OracleComparison;

/// <summary>Layer norm, linear layers, feed-forward, final norm and the head against the oracle.</summary>
public sealed class DenseTests
{
    private static readonly Randomness s_randomness = new(77UL << 33 | 5, 12, 6);
    private static readonly Randomness s_noLayer = s_randomness with { Layer = -1 };

    [Test]
    public void LayerNorm_OddSizes_EqualsOracle(
        [Values(1, 31, 33, 257)] int rows, [Values(2, 31, 33, 64, 100)] int width)
    {
        var random = new Random(rows + width);
        double[] x = random.Normals(rows * width, 2, 1), gradY = random.Normals(rows * width);
        double[] weight = random.Normals(width), bias = random.Normals(width);
        using var run = new NativeRun();
        var native = new Native.LayerNorm
        {
            Epsilon = 1e-6f,
            X = run.Input(x, rows, width),
            Weight = run.Input(weight, width),
            Bias = run.Input(bias, width),
            Y = run.Output(rows, width),
            GradY = run.Input(gradY, rows, width),
            GradX = run.Output(rows, width),
            GradWeight = run.Accumulator(width),
            GradBias = run.Accumulator(width),
        };
        native.Forward(run.Workspace);
        native.Backward(run.Workspace);
        NativeRun.Expect("layer_norm.y", native.Y, LayerNorm.Forward(x, weight, bias, 1e-6f), NativeRun.ForwardLimit);
        var g = LayerNorm.Backward(x, weight, 1e-6f, gradY);

        // Two numbers normalise to +1 and -1 whatever they are: the gradient of x is what epsilon leaves of terms that
        // cancel.
        double inverse = x.Chunk(width)
            .Max(row => 1 / Math.Sqrt(row.Average(v => v * v) - (row.Average() * row.Average())));
        double floor = width == 2 ? Math.ScaleB(inverse * gradY.Max(Math.Abs) * weight.Max(Math.Abs), -21) : 0;
        NativeRun.Expect("layer_norm.grad_x", native.GradX, g.X, NativeRun.GradientLimit, floor);
        NativeRun.ExpectAdded("layer_norm.grad_weight", native.GradWeight, g.Weight);
        NativeRun.ExpectAdded("layer_norm.grad_bias", native.GradBias, g.Bias);
        run.CheckMemory();
    }

    /// <summary>A mean of 1000 standard deviations: the sum of squares alone would lose the variance.</summary>
    [Test]
    public void LayerNorm_LargeMean_EqualsOracle()
    {
        const int Rows = 33, Width = 100;
        var random = new Random(1);
        double[] x = random.Normals(Rows * Width, 1, 1000),
            weight = random.Normals(Width),
            bias = random.Normals(Width);
        using var run = new NativeRun();
        var native = new Native.LayerNorm
        {
            Epsilon = 1e-6f,
            X = run.Input(x, Rows, Width),
            Weight = run.Input(weight, Width),
            Bias = run.Input(bias, Width),
            Y = run.Output(Rows, Width),
        };
        native.Forward(run.Workspace);

        // The mean itself is rounded to 2^-24 of 1000 standard deviations.
        double limit = NativeRun.ForwardLimit + Math.ScaleB(1000, -24);
        NativeRun.Expect("layer_norm.y_large_mean", native.Y, LayerNorm.Forward(x, weight, bias, 1e-6f), limit);
    }

    [Test]
    public void LayerNorm_OneNumberPerRow_IsTheBias()
    {
        using var run = new NativeRun();
        var native = new Native.LayerNorm
        {
            Epsilon = 1e-6f,
            X = run.Input([3.0, -4], 2, 1),
            Weight = run.Input([2.0], 1),
            Bias = run.Input([0.5], 1),
            Y = run.Output(2, 1),
            GradY = run.Input([1.0, 2], 2, 1),
            GradX = run.Output(2, 1),
            GradWeight = run.Accumulator(1),
            GradBias = run.Accumulator(1),
        };
        native.Forward(run.Workspace);
        native.Backward(run.Workspace);
        NativeRun.Expect("layer_norm.y", native.Y, [0.5, 0.5], 0);
        NativeRun.Expect("layer_norm.grad_x", native.GradX, [0, 0], 0);
        NativeRun.ExpectAdded("layer_norm.grad_weight", native.GradWeight, [0]);
        NativeRun.ExpectAdded("layer_norm.grad_bias", native.GradBias, [3]);
        run.CheckMemory();
    }

    [TestCase(1, 1, 1)]
    [TestCase(31, 33, 65)]
    [TestCase(33, 31, 1)]
    [TestCase(257, 64, 33)]
    public void Linear_OddSizesAndEveryActivation_EqualsOracle(int rows, int inputs, int outputs)
    {
        foreach (var activation in Enum.GetValues<Activation>())
        {
            foreach (bool isWhole in new[] { false, true })
            {
                var random = new Random(rows + (int)activation);
                double[] x = random.Normals(rows * inputs),
                    weight = random.Normals(outputs * inputs, 1 / Math.Sqrt(inputs));
                double[] gradY = random.Normals(rows * outputs);
                double[]? bias = isWhole ? random.Normals(outputs) : null;
                using var run = new NativeRun();
                var native = new Native.Linear
                {
                    Activation = (Native.Activation)activation,
                    X = run.Input(x, rows, inputs),
                    Weight = run.Input(weight, outputs, inputs),
                    Bias = run.Input(bias, outputs),
                    Y = run.Output(rows, outputs),
                    GradY = run.Input(gradY, rows, outputs),
                    GradX = isWhole ? run.Output(rows, inputs) : default,
                    GradWeight = run.Accumulator(outputs, inputs),
                    GradBias = isWhole ? run.Accumulator(outputs) : default,
                };
                native.Forward(run.Workspace);
                native.Backward(run.Workspace);
                NativeRun.Expect(
                    "linear.y", native.Y, Linear.Forward(x, weight, bias, inputs, activation), NativeRun.ForwardLimit);
                var g = Linear.Backward(x, weight, bias, inputs, gradY, activation);
                NativeRun.ExpectAdded("linear.grad_weight", native.GradWeight, g.Weight);
                if (isWhole)
                {
                    NativeRun.Expect("linear.grad_x", native.GradX, g.X, NativeRun.GradientLimit);
                    NativeRun.ExpectAdded("linear.grad_bias", native.GradBias, g.Bias!);
                }

                run.CheckMemory();
            }
        }
    }

    [TestCase(1, 1, 1)]
    [TestCase(31, 33, 65)]
    [TestCase(33, 31, 129)]
    [TestCase(67, 16, 48)]
    public void FeedForward_OddSizesChunksAndDropout_EqualsOracle(int rows, int width, int hidden)
    {
        foreach (var activation in Enum.GetValues<Activation>())
        {
            foreach (int chunk in new[] { 0, 1, 7, rows - 1, rows, rows + 5 }.Where(c => c >= 0))
            {
                float dropout = chunk % 2 == 0 ? 0 : 0.2f;
                var random = new Random(chunk);
                var p = new FeedForwardParameters(
                    random.Normals(hidden * width, 1 / Math.Sqrt(width)), random.Normals(hidden),
                    random.Normals(width * hidden, 1 / Math.Sqrt(hidden)), random.Normals(width));
                double[] x = random.Normals(rows * width), gradY = random.Normals(rows * width);
                using var run = new NativeRun();
                var native = new Native.FeedForward
                {
                    Activation = (Native.Activation)activation,
                    Dropout = dropout,
                    Layer = s_randomness.Layer,
                    Seed = s_randomness.Seed,
                    Step = s_randomness.Step,
                    Chunk = chunk,
                    X = run.Input(x, rows, width),
                    W1 = run.Input(p.W1, hidden, width),
                    B1 = run.Input(p.B1, hidden),
                    W2 = run.Input(p.W2, width, hidden),
                    B2 = run.Input(p.B2, width),
                    Y = run.Output(rows, width),
                    GradY = run.Input(gradY, rows, width),
                    GradX = run.Output(rows, width),
                    GradW1 = run.Accumulator(hidden, width),
                    GradB1 = run.Accumulator(hidden),
                    GradW2 = run.Accumulator(width, hidden),
                    GradB2 = run.Accumulator(width),
                };
                native.Forward(run.Workspace);
                native.Backward(run.Workspace);
                NativeRun.Expect(
                    "feed_forward.y", native.Y, FeedForward.Forward(x, p, activation, dropout, s_randomness),
                    NativeRun.ForwardLimit);
                var (gradX, g) = FeedForward.Backward(x, p, activation, dropout, s_randomness, gradY);
                NativeRun.Expect("feed_forward.grad_x", native.GradX, gradX, NativeRun.GradientLimit);
                NativeRun.ExpectAdded("feed_forward.grad_w1", native.GradW1, g.W1);
                NativeRun.ExpectAdded("feed_forward.grad_b1", native.GradB1, g.B1);
                NativeRun.ExpectAdded("feed_forward.grad_w2", native.GradW2, g.W2);
                NativeRun.ExpectAdded("feed_forward.grad_b2", native.GradB2, g.B2);
                run.CheckMemory();
            }
        }
    }

    [Test]
    public void FinalNorm_OddSizesAndDropout_EqualsOracle(
        [Values] Combine combine, [Values(1, 31, 33, 130)] int rows, [Values(3, 31, 33)] int width,
        [Values(0f, 0.3f)] float dropout)
    {
        var random = new Random(rows + width);
        int joined = combine == Combine.Concatenate ? 2 * width : width;
        double[] first = random.Normals(rows * width),
            second = random.Normals(rows * width),
            gradY = random.Normals(rows * joined);
        double[] weight = random.Normals(joined),
            bias = random.Normals(joined);
        using var run = new NativeRun();
        var native = new Native.FinalNorm
        {
            Combine = (Native.StreamCombination)combine,
            Epsilon = 1e-5f,
            Dropout = dropout,
            Seed = s_noLayer.Seed,
            Step = s_noLayer.Step,
            Stream1 = run.Input(first, rows, width),
            Stream2 = run.Input(second, rows, width),
            Weight = run.Input(weight, joined),
            Bias = run.Input(bias, joined),
            Y = run.Output(rows, joined),
            GradY = run.Input(gradY, rows, joined),
            GradStream1 = run.Output(rows, width),
            GradStream2 = run.Output(rows, width),
            GradWeight = run.Accumulator(joined),
            GradBias = run.Accumulator(joined),
        };
        native.Forward(run.Workspace);
        native.Backward(run.Workspace);
        var y = FinalNorm.Forward(combine, first, second, width, weight, bias, 1e-5f, dropout, s_noLayer);
        NativeRun.Expect("final_norm.y", native.Y, y, NativeRun.ForwardLimit);
        var g = FinalNorm.Backward(combine, first, second, width, weight, 1e-5f, dropout, s_noLayer, gradY);
        NativeRun.Expect("final_norm.grad_stream1", native.GradStream1, g.Stream1, NativeRun.GradientLimit);
        NativeRun.Expect("final_norm.grad_stream2", native.GradStream2, g.Stream2, NativeRun.GradientLimit);
        NativeRun.ExpectAdded("final_norm.grad_weight", native.GradWeight, g.Weight);
        NativeRun.ExpectAdded("final_norm.grad_bias", native.GradBias, g.Bias);
        run.CheckMemory();
    }

    [TestCase(1, 1, 1)]
    [TestCase(31, 33, 65)]
    [TestCase(33, 31, 257)]
    [TestCase(70, 8, 3)]
    public void HeadLoss_OddSizesChunksAndSmoothing_EqualsOracle(int rows, int inputs, int vocabulary)
    {
        foreach (int chunk in new[] { 0, 1, 7, rows + 3 })
        {
            foreach (float smoothing in new[] { 0, 0.1f, 1 })
            {
                CheckHeadLoss(
                    rows, inputs, vocabulary, chunk, smoothing, normalizer: chunk == 7 ? 1000 : 0, ignored: 0.3);
            }
        }
    }

    /// <summary>Logits of hundreds, beyond what exp can hold in float32.</summary>
    [Test]
    public void HeadLoss_LargeLogits_EqualsOracle()
    {
        double[] weight = [300, -300, 120], gradient = HeadLoss.Run([1, -1], weight, null, 1, [1, 1], -100).GradX;
        using var run = new NativeRun();
        var native = new Native.HeadLoss
        {
            IgnoreIndex = -100,
            LossScale = 1,
            X = run.Input([1.0, -1], 2, 1),
            Weight = run.Input(weight, 3, 1),
            Labels = run.Input(new[] { 1, 1 }, 2),
            Statistics = run.OutputDoubles(3),
            GradX = run.Output(2, 1),
            GradWeight = run.Accumulator(3, 1),
        };
        native.Backward(run.Workspace);
        CheckStatistics(native.Statistics, [600, 2, 1]);
        NativeRun.Expect("head_loss.grad_x", native.GradX, gradient, NativeRun.GradientLimit);
    }

    [Test]
    public void HeadLoss_NoRowCounts_IsZero() => CheckHeadLoss(9, 5, 7, 4, 0.1f, 0, ignored: 1);

    private static void CheckHeadLoss(
        int rows, int inputs, int vocabulary, int chunk, float smoothing, double normalizer, double ignored)
    {
        const int Ignore = -100;
        var random = new Random(rows + chunk);
        double[] x = random.Normals(rows * inputs), weight = random.Normals(vocabulary * inputs, 2 / Math.Sqrt(inputs));
        double[]? bias = chunk == 1 ? null : random.Normals(vocabulary);
        int[] labels =
        [
            .. random.Integers(rows, vocabulary).Select(label => random.NextDouble() < ignored ? Ignore : label),
        ];
        var expected = HeadLoss.Run(x, weight, bias, inputs, labels, Ignore, smoothing, 0.25, normalizer);
        using var run = new NativeRun();
        var native = new Native.HeadLoss
        {
            IgnoreIndex = Ignore,
            LabelSmoothing = smoothing,
            LossScale = 0.25f,
            Normalizer = normalizer,
            Chunk = chunk,
            X = run.Input(x, rows, inputs),
            Weight = run.Input(weight, vocabulary, inputs),
            Bias = run.Input(bias, vocabulary),
            Labels = run.Input(labels, rows),
            Statistics = run.OutputDoubles(3),
            GradX = run.Output(rows, inputs),
            GradWeight = run.Accumulator(vocabulary, inputs),
            GradBias = bias is null ? default : run.Accumulator(vocabulary),
        };
        native.Forward(run.Workspace);
        CheckStatistics(native.Statistics, expected.Statistics);
        var backward = native with { Statistics = run.OutputDoubles(3) };
        backward.Backward(run.Workspace);
        CheckStatistics(backward.Statistics, expected.Statistics);

        // softmax - target cancels where the model is sure: what is left of it is relative to 1 / normalizer.
        double rounding = Math.ScaleB(0.25 / (normalizer == 0 ? Math.Max(1, expected.Statistics[1]) : normalizer), -21);
        NativeRun.Expect(
            "head_loss.grad_x", native.GradX, expected.GradX, NativeRun.GradientLimit, rounding * weight.Max(Math.Abs));
        NativeRun.ExpectAdded("head_loss.grad_weight", native.GradWeight, expected.GradWeight);
        if (bias is not null)
        {
            NativeRun.ExpectAdded("head_loss.grad_bias", native.GradBias, expected.GradBias!);
        }

        // grad_x may be the memory of x.
        var inPlace = run.InPlace(x, rows, inputs);
        var again = native with
        {
            X = inPlace,
            GradX = inPlace,
            GradWeight = run.Accumulator(vocabulary, inputs),
            GradBias = bias is null ? default : run.Accumulator(vocabulary),
        };
        again.Backward(run.Workspace);
        Assert.That(inPlace.ToArray<float>(), Is.EqualTo(native.GradX.ToArray<float>()));
        Assert.That(again.GradWeight.ToArray<float>(), Is.EqualTo(native.GradWeight.ToArray<float>()));
        run.CheckMemory();
    }

    private static void CheckStatistics(TensorView actual, double[] expected)
    {
        double[] values = actual.ToArray<double>();
        Assert.That(values[0], Is.EqualTo(expected[0]).Within(1e-5 * Math.Abs(expected[0])), "sum of losses");
        Assert.That(values[1..], Is.EqualTo(expected[1..]), "rows counted and rows right");
    }
}
