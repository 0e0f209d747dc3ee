using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Tests.Ops;

/// <summary>Every op through the managed library, on numbers that can be checked by hand.</summary>
public sealed class OpsTests
{
    private readonly List<Tensor> tensors = [];
    private ReformerContext context = null!;
    private Workspace workspace = null!;

    [SetUp]
    public void Open()
    {
        context = new ReformerContext(threads: 2);
        workspace = new Workspace(context);
    }

    [TearDown]
    public void Close()
    {
        tensors.ForEach(t => t.Dispose());
        tensors.Clear();
        workspace.Dispose();
        context.Dispose();
    }

    [Test]
    public void LayerNorm_TwoValues_BecomeMinusOneAndOne()
    {
        Tensor x = Values([1, 3, 10, 2], new TensorShape(2, 2));
        Tensor weight = Values([1, 2], new TensorShape(2));
        Tensor bias = Values([0, 5], new TensorShape(2));
        Tensor y = Nan(new TensorShape(2, 2));
        var op = new LayerNorm { Epsilon = 1e-12f, X = x, Weight = weight, Bias = bias, Y = y };
        op.Forward(workspace);
        Assert.That(y.ToArray<float>(), Is.EqualTo(new float[] { -1, 7, 1, 3 }).Within(1e-6));

        Tensor gradX = Nan(new TensorShape(2, 2));
        Tensor gradWeight = Values([1, 1], new TensorShape(2));
        Tensor gradBias = Values([1, 1], new TensorShape(2));
        Tensor gradY = Values([1, 1, 1, 1], new TensorShape(2, 2));
        (op with { GradY = gradY, GradX = gradX, GradWeight = gradWeight, GradBias = gradBias }).Backward(workspace);
        Assert.That(
            gradX.ToArray<float>(), Is.All.EqualTo(0).Within(1e-5),
            "two values normalise to the same whatever they are");
        Assert.That(gradWeight.ToArray<float>(), Is.EqualTo(new float[] { 1, 1 }).Within(1e-6));
        Assert.That(gradBias.ToArray<float>(), Is.EqualTo(new float[] { 3, 3 }).Within(1e-6));
    }

    [Test]
    public void Linear_WithRelu_CutsOffNegatives()
    {
        Tensor x = Values([1, 2], new TensorShape(1, 2));
        Tensor weight = Values([3, 4, -1, 0], new TensorShape(2, 2));
        Tensor bias = Values([5, 0], new TensorShape(2));
        Tensor y = Nan(new TensorShape(1, 2));
        var op = new Linear { Activation = Activation.Relu, X = x, Weight = weight, Bias = bias, Y = y };
        op.Forward(workspace);
        Assert.That(y.ToArray<float>(), Is.EqualTo(new float[] { 16, 0 }));

        Tensor gradX = Nan(new TensorShape(1, 2));
        Tensor gradWeight = Values([1, 1, 1, 1], new TensorShape(2, 2));
        Tensor gradY = Values([2, 2], new TensorShape(1, 2));
        (
            op with
            {
                GradY = gradY,
                GradX = gradX,
                GradWeight = gradWeight,
                GradBias = Values([0, 0], new TensorShape(2)),
            }
        ).Backward(workspace);
        Assert.That(gradX.ToArray<float>(), Is.EqualTo(new float[] { 6, 8 }));
        Assert.That(gradWeight.ToArray<float>(), Is.EqualTo(new float[] { 3, 5, 1, 1 }));
    }

    [Test]
    public void FeedForward_OfIdentities_IsRelu()
    {
        Tensor identity = Values([1, 0, 0, 1], new TensorShape(2, 2));
        Tensor zero = Values([0, 0], new TensorShape(2));
        Tensor y = Nan(new TensorShape(3, 2));
        Tensor x = Values([1, -2, 3, 4, -5, 6], new TensorShape(3, 2));
        new FeedForward
        {
            Activation = Activation.Relu,
            X = x,
            W1 = identity,
            B1 = zero,
            W2 = identity,
            B2 = zero,
            Y = y,
        }.Forward(workspace);
        Assert.That(y.ToArray<float>(), Is.EqualTo(new float[] { 1, 0, 3, 4, 0, 6 }));
    }

    [Test]
    public void FinalNorm_Mean_NormalisesTheMean()
    {
        Tensor y = Nan(new TensorShape(1, 2));
        new FinalNorm
        {
            Combine = StreamCombination.Mean,
            Epsilon = 1e-12f,
            Stream1 = Values([1, 3], new TensorShape(1, 2)),
            Stream2 = Values([1, 7], new TensorShape(1, 2)),
            Weight = Values([1, 1], new TensorShape(2)),
            Bias = Values([0, 0], new TensorShape(2)),
            Y = y,
        }.Forward(workspace);
        Assert.That(y.ToArray<float>(), Is.EqualTo(new float[] { -1, 1 }).Within(1e-6));
    }

    [Test]
    public void HeadLoss_OfEqualLogits_IsTheLogarithmOfTheVocabulary()
    {
        Tensor statistics = Keep(new Tensor(context, new TensorShape(3), DType.Float64));
        Tensor gradX = Nan(new TensorShape(3, 2));
        Tensor gradBias = Keep(context.Zeros(new TensorShape(4)));
        new HeadLoss
        {
            IgnoreIndex = -100,
            LossScale = 1,
            X = Values([1, 2, 3, 4, 5, 6], new TensorShape(3, 2)),
            Weight = Values(new float[8], new TensorShape(4, 2)),
            Bias = Values(new float[4], new TensorShape(4)),
            Labels = Keep(context.FromValues<int>([0, -100, 3], new TensorShape(3))),
            Statistics = statistics,
            GradX = gradX,
            GradWeight = Keep(context.Zeros(new TensorShape(4, 2))),
            GradBias = gradBias,
        }.Backward(workspace);
        Assert.That(statistics.ToArray<double>(), Is.EqualTo(new[] { 2 * Math.Log(4), 2, 1 }).Within(1e-6));
        Assert.That(gradX.ToArray<float>(), Is.All.EqualTo(0), "the weights are zero");
        Assert.That(gradBias.ToArray<float>(), Is.EqualTo(new[] { -0.25f, 0.25f, 0.25f, -0.25f }));
    }

    [Test]
    public void Embedding_Axial_AddsThePartsOfEachPosition()
    {
        Tensor stream1 = Nan(new TensorShape(1, 4, 2));
        Tensor stream2 = Nan(new TensorShape(1, 4, 2));
        var op = new Embedding
        {
            Positions = PositionEncoding.Axial,
            Ids = Keep(context.FromValues<int>([2, 0, 1, 2], new TensorShape(1, 4))),
            Word = Values([1, 2, 3, 4, 5, 6], new TensorShape(3, 2)),
            Position = new PositionTables(
                Values([10, 20], new TensorShape(2, 1)), Values([100, 200], new TensorShape(2, 1))),
            Stream1 = stream1,
            Stream2 = stream2,
        };
        op.Forward(workspace);
        Assert.That(stream1.ToArray<float>(), Is.EqualTo(new float[] { 15, 106, 11, 202, 23, 104, 25, 206 }));
        Assert.That(stream2.ToArray<float>(), Is.EqualTo(stream1.ToArray<float>()));

        Tensor gradWord = Keep(context.Zeros(new TensorShape(3, 2)));
        Tensor gradRow = Keep(context.Zeros(new TensorShape(2, 1)));
        Tensor gradColumn = Keep(context.Zeros(new TensorShape(2, 1)));
        Tensor ones = Values([1, 1, 1, 1, 1, 1, 1, 1], new TensorShape(1, 4, 2));
        (
            op with
            {
                GradStream1 = ones,
                GradStream2 = ones,
                GradWord = gradWord,
                GradPosition = new PositionTables(gradRow, gradColumn),
            }
        ).Backward(workspace);
        Assert.That(gradWord.ToArray<float>(), Is.EqualTo(new float[] { 2, 2, 2, 2, 4, 4 }));
        Assert.That(gradRow.ToArray<float>(), Is.EqualTo(new float[] { 4, 4 }));
        Assert.That(gradColumn.ToArray<float>(), Is.EqualTo(new float[] { 4, 4 }));
    }

    [Test]
    public void Attention_FullAndCausal_AveragesEqualKeys()
    {
        var shape = new TensorShape(1, 3, 1, 1);
        Tensor output = Nan(shape);
        Tensor logSumExp = Nan(new TensorShape(1, 1, 3));
        new Attention
        {
            Options = AttentionOptions.Full(causal: true),
            Q = Values([1, 1, 1], shape),
            K = Values([0, 0, 0], shape),
            V = Values([3, 6, 9], shape),
            Out = output,
            LogSumExp = logSumExp,
        }.Forward(workspace);
        Assert.That(output.ToArray<float>(), Is.EqualTo(new float[] { 3, 4.5f, 6 }).Within(1e-6));
        Assert.That(logSumExp.ToArray<float>(), Is.EqualTo(new[] { 0, MathF.Log(2), MathF.Log(3) }).Within(1e-6));
    }

    [Test]
    public void AttentionPreset_OfAName_IsThatOne()
    {
        Assert.That(
            AttentionPreset.All.Select(preset => AttentionPreset.FromName(preset.Name)),
            Is.EqualTo(AttentionPreset.All));
        Assert.That(AttentionPreset.FromName("trax").Rotations, Is.EqualTo(AttentionPreset.Trax.Rotations));
        Assert.That(
            () => AttentionPreset.FromName("Trax"),
            Throws.ArgumentException.With.Message.Contains("(trax, hf, paper, lucidrains, strict), got 'Trax'"));
    }

    [TestCase("trax")]
    [TestCase("hf")]
    [TestCase("paper")]
    [TestCase("lucidrains")]
    [TestCase("strict")]
    public void Attention_Lsh_StagesGiveTheWhole(string name)
    {
        const int batch = 2, length = 13, heads = 2, size = 8;
        AttentionPreset preset = AttentionPreset.FromName(name);
        AttentionOptions options = AttentionOptions.Lsh(
            preset, causal: true, chunkLength: 4, rounds: 2, new BucketFactors(4));
        var shape = new TensorShape(batch, length, heads, size);
        Tensor q = Random(shape, 1);
        Tensor v = Random(shape, 2);
        Tensor rotations = Random(options.RotationsShape(preset.Rotations, batch, heads, size), 3);
        Tensor wholeOut = Nan(shape);
        Tensor wholeLogSumExp = Nan(new TensorShape(batch, heads, length));
        Tensor wholeBuckets = Keep(new Tensor(context, options.BucketsShape(batch, heads, length), DType.Int32));
        var whole = new Attention
        {
            Options = options,
            Q = q,
            V = v,
            Rotations = rotations,
            Buckets = wholeBuckets,
            Out = wholeOut,
            LogSumExp = wholeLogSumExp,
        };
        whole.Forward(workspace);

        Tensor stageOut = Nan(shape);
        Tensor stageLogSumExp = Nan(new TensorShape(batch, heads, length));
        Tensor stageBuckets = Keep(new Tensor(context, options.BucketsShape(batch, heads, length), DType.Int32));
        Attention stages = whole with
        {
            Buckets = stageBuckets,
            Out = stageOut,
            LogSumExp = stageLogSumExp,
            Sorted = Keep(new Tensor(context, new TensorShape(batch, heads, 2, 16), DType.Int32)),
            RoundOut = Nan(new TensorShape(2 * batch, length, heads, size)),
            RoundLogSumExp = Nan(new TensorShape(2, batch, heads, length)),
        };
        stages.Hash(workspace);
        stages.Sort(workspace);
        stages.Attend(workspace);
        stages.Combine(workspace);
        Assert.That(stageBuckets.ToArray<int>(), Is.EqualTo(wholeBuckets.ToArray<int>()));
        Assert.That(stageOut.ToArray<float>(), Is.EqualTo(wholeOut.ToArray<float>()).Within(2e-6));
        Assert.That(stageLogSumExp.ToArray<float>(), Is.EqualTo(wholeLogSumExp.ToArray<float>()).Within(2e-6));
    }

    [Test]
    public void ReversibleBlock_Exact_GivesBackTheSameBits()
    {
        const int width = 16, heads = 2, size = 8, hidden = 24, length = 21;
        BlockParameters parameters = Parameters(width, heads * size, hidden, seed: 10, scale: 0.3f);
        BlockParameters gradients = Parameters(width, heads * size, hidden, seed: 0, scale: 0);
        AttentionOptions options = AttentionOptions.Lsh(
            AttentionPreset.Trax, causal: true, chunkLength: 4, rounds: 2, new BucketFactors(4)) with
        {
            Dropout = 0.1f,
        };
        var shape = new TensorShape(1, length, width);
        Tensor report = Keep(context.Zeros(new TensorShape(4), DType.Int64));
        var block = new ReversibleBlock
        {
            Attention = options,
            Heads = heads,
            Activation = Activation.GeluErf,
            LayerNormEpsilon = 1e-6f,
            AttentionOutputDropout = 0.1f,
            FeedForwardDropout = 0.1f,
            Residual = ResidualMode.Exact,
            GridExponent = -16,
            Stream1 = Grid(Random(shape, 4)),
            Stream2 = Grid(Random(shape, 5)),
            GradStream1 = Random(shape, 6),
            GradStream2 = Random(shape, 7),
            RangeReport = report,
            Parameters = parameters,
            Gradients = gradients,
            Rotations = Random(options.RotationsShape(RotationScope.PerHead, 1, heads, size), 8),
            Seed = 3,
            Step = 9,
            Layer = 2,
        };
        float[] before1 = block.Stream1.ToArray<float>();
        float[] before2 = block.Stream2.ToArray<float>();
        block.Forward(workspace);
        Assert.That(block.Stream1.ToArray<float>(), Is.Not.EqualTo(before1));
        block.Backward(workspace);
        Assert.That(block.Stream1.ToArray<float>(), Is.EqualTo(before1));
        Assert.That(block.Stream2.ToArray<float>(), Is.EqualTo(before2));
        Assert.That(report.ToArray<long>(), Is.All.Zero);
        Assert.That(gradients.W1.ToArray<float>(), Has.Some.Not.Zero);
    }

    [Test]
    public void GlobalNorm_OfThreeAndFour_IsFive()
    {
        Tensor result = Nan(new TensorShape(2));
        TensorView[] gradients = [Values([3], new TensorShape(1)), Values([0, 4], new TensorShape(1, 2))];
        new GlobalNorm { MaxNorm = 1, Gradients = gradients, Result = result }.Run(workspace);
        Assert.That(result.ToArray<float>(), Is.EqualTo(new[] { 5, 0.2f }).Within(1e-6));
        new GlobalNorm { Gradients = gradients, Result = result }.Run(workspace);
        Assert.That(result.ToArray<float>(), Is.EqualTo(new float[] { 5, 1 }).Within(1e-6));
    }

    [Test]
    public void AdamW_FirstStep_MovesByTheLearningRate()
    {
        Tensor parameter = Values([1, 1], new TensorShape(2));
        new AdamW
        {
            LearningRate = 0.1f,
            Beta1 = 0.9f,
            Beta2 = 0.999f,
            Epsilon = 1e-8f,
            Step = 1,
            Parameters = [parameter],
            Gradients = [Values([5, -7], new TensorShape(2))],
            Moments1 = [Values([0, 0], new TensorShape(2))],
            Moments2 = [Values([0, 0], new TensorShape(2))],
        }.Run(context);
        Assert.That(parameter.ToArray<float>(), Is.EqualTo(new[] { 0.9f, 1.1f }).Within(1e-5));
    }

    [Test]
    public void Adafactor_FirstStepOfAVector_MovesByTheLearningRate()
    {
        Tensor parameter = Values([1, 1], new TensorShape(2));
        new Adafactor
        {
            LearningRate = 0.1f,
            DecayExponent = 0.8f,
            ClipThreshold = 1,
            Epsilon1 = 1e-30f,
            Epsilon2 = 1e-3f,
            Step = 1,
            Parameters = [parameter],
            Gradients = [Values([5, -7], new TensorShape(2))],
            Moments2 = [Values([0, 0], new TensorShape(2))],
        }.Run(workspace);
        Assert.That(parameter.ToArray<float>(), Is.EqualTo(new[] { 0.9f, 1.1f }).Within(1e-5));
    }

    [TestCase(1, 1, 1)]
    [TestCase(2, 1, 1)]
    [TestCase(2, 2, 1)]
    public void AdamW_ListsOfDifferentLengths_AreRefused(int gradients, int moments, int decays)
    {
        TensorView[] views = [Values([1], new TensorShape(1)), Values([1], new TensorShape(1))];
        ArgumentException error = Assert.Throws<ArgumentException>(
            () => new AdamW
            {
                LearningRate = 0.1f,
                Beta1 = 0.9f,
                Beta2 = 0.999f,
                Epsilon = 1e-8f,
                Step = 1,
                Parameters = views,
                Gradients = views.AsSpan(0, gradients),
                Moments1 = views.AsSpan(0, moments),
                Moments2 = views,
                WeightDecays = new float[decays],
            }.Run(context))!;
        string name = gradients < 2 ? "Gradients" : moments < 2 ? "Moments1" : "WeightDecays";
        Assert.That(error.Message, Does.StartWith($"{name}: expected 2, one for each parameter, got 1"));
    }

    [Test]
    public void Sample_WithoutTemperature_TakesTheFirstLargest()
    {
        Tensor ids = Keep(new Tensor(context, new TensorShape(2), DType.Int32));
        var op = new Sample
        {
            Temperature = 0,
            TopP = 1,
            Logits = Values([1, 9, 9, 3, 4, 0], new TensorShape(2, 3)),
            Ids = ids,
        };
        op.Run(workspace);
        Assert.That(ids.ToArray<int>(), Is.EqualTo(new[] { 1, 1 }));
        (op with { Temperature = 1, TopK = 1 }).Run(workspace);
        Assert.That(ids.ToArray<int>(), Is.EqualTo(new[] { 1, 1 }));
    }

    [Test]
    public void RandomNormal_IsAFunctionOfItsKey()
    {
        float[] first = Random(new TensorShape(1000), 1).ToArray<float>();
        Assert.That(Random(new TensorShape(1000), 1).ToArray<float>(), Is.EqualTo(first));
        Assert.That(Random(new TensorShape(1000), 2).ToArray<float>(), Is.Not.EqualTo(first));
        Assert.That(first.Average(), Is.EqualTo(0).Within(0.1));
        Assert.That(first.Average(z => z * z), Is.EqualTo(1).Within(0.15));
    }

    [Test]
    public void BucketFactors_Automatic_FollowTheImplementations()
    {
        Assert.That(BucketFactors.Automatic(BucketRule.Trax, 1024, 64, 0).ToArray(), Is.EqualTo(new[] { 32 }));
        Assert.That(BucketFactors.Automatic(BucketRule.Trax, 65536, 64, 0).ToArray(), Is.EqualTo(new[] { 64, 32 }));
        Assert.That(BucketFactors.Automatic(BucketRule.Lucidrains, 1024, 64, 0).ToArray(), Is.EqualTo(new[] { 16 }));
        Assert.That(BucketFactors.Automatic(BucketRule.HuggingFace, 1024, 64, 1024).Buckets, Is.EqualTo(32));
        Assert.That(() => new BucketFactors(3), Throws.ArgumentException);
        Assert.That((new BucketFactors(4, 6).Buckets, new BucketFactors(4, 6).RotationColumns), Is.EqualTo((24L, 5L)));
    }

    [Test]
    public void Op_WrongShape_SaysArgumentExpectedAndFound()
    {
        Tensor x = Values([1, 2, 3, 4], new TensorShape(2, 2));
        Tensor three = Values([1, 2, 3], new TensorShape(3));
        var error = Assert.Throws<ArgumentException>(
            () => new LayerNorm { Epsilon = 1e-12f, X = x, Weight = three, Bias = three, Y = x }.Forward(workspace));
        Assert.That(error!.Message, Does.Contain("weight").And.Contain("[2]").And.Contain("[3]"));
    }

    [Test]
    public void Op_TensorWithoutData_IsRefusedButItsWorkspaceIsKnown()
    {
        TensorView x = TensorView.Meta(new TensorShape(1 << 20, 256));
        TensorView row = TensorView.Meta(new TensorShape(256));
        var op = new LayerNorm
        {
            Epsilon = 1e-12f,
            X = x,
            Weight = row,
            Bias = row,
            Y = x,
            GradY = x,
            GradX = x,
            GradWeight = row,
            GradBias = row,
        };
        Assert.That(op.WorkspaceBytes(context, Pass.Forward), Is.GreaterThanOrEqualTo(0));
        Assert.That(op.WorkspaceBytes(context, Pass.Backward), Is.GreaterThanOrEqualTo(0));
        Assert.That(() => op.Forward(workspace), Throws.ArgumentException.With.Message.Contains("x"));
    }

    private Tensor Keep(Tensor tensor)
    {
        tensors.Add(tensor);
        return tensor;
    }

    private Tensor Values(float[] values, TensorShape shape) => Keep(context.FromValues<float>(values, shape));

    private Tensor Nan(TensorShape shape)
    {
        Tensor tensor = Keep(new Tensor(context, shape));
        tensor.AsSpan<float>().Fill(float.NaN);
        return tensor;
    }

    private Tensor Random(TensorShape shape, ulong seed, float scale = 1)
    {
        Tensor tensor = Nan(shape);
        new RandomNormal
        {
            Site = RandomSite.Parameters,
            Seed = seed,
            StandardDeviation = scale,
            Destination = tensor,
        }.Run(context);
        return tensor;
    }

    private static Tensor Grid(Tensor tensor)
    {
        foreach (ref float value in tensor.AsSpan<float>())
        {
            value = MathF.Round(value * 65536) / 65536;
        }

        return tensor;
    }

    private BlockParameters Parameters(long width, long inner, long hidden, ulong seed, float scale) => new()
    {
        AttentionNormWeight = Random(new TensorShape(width), seed, scale),
        AttentionNormBias = Random(new TensorShape(width), seed + 1, scale),
        Query = Random(new TensorShape(inner, width), seed + 2, scale),
        Value = Random(new TensorShape(inner, width), seed + 3, scale),
        Output = Random(new TensorShape(width, inner), seed + 4, scale),
        FeedForwardNormWeight = Random(new TensorShape(width), seed + 5, scale),
        FeedForwardNormBias = Random(new TensorShape(width), seed + 6, scale),
        W1 = Random(new TensorShape(hidden, width), seed + 7, scale),
        B1 = Random(new TensorShape(hidden), seed + 8, scale),
        W2 = Random(new TensorShape(width, hidden), seed + 9, scale),
        B2 = Random(new TensorShape(width), seed + 10, scale),
    };
}
