using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Tests.Training;
using ReformerNative.Training;

namespace ReformerNative.Tests.Model;

/// <summary>Generation from a cache against forward passes over the whole sequence.</summary>
public sealed class GenerationTests
{
    private const double Limit = 1e-4; // of the largest logit

    private ReformerContext _context = null!;

    private static readonly Dictionary<string, ReformerConfig> Models = new()
    {
        ["text"] = ModelTests.Small,
        ["other chunks"] = ModelTests.Small with { LocalAttnChunkLength = 4, LshAttnChunkLength = 12 },
        ["floats, no positions"] = ModelTests.Small with
        {
            Residual = ResidualMode.Float,
            Positions = PositionEncoding.None,
            HashSeed = 3,
            AttnLayers = [AttentionKind.Lsh, AttentionKind.Lsh],
        },
        ["mean, full"] = ModelTests.Small with
        {
            FinalCombine = StreamCombination.Mean,
            AttnLayers = [AttentionKind.Full, AttentionKind.Lsh, AttentionKind.Local],
            Positions = PositionEncoding.Learned,
        },
        ["auto"] = ModelTests.Small with { AttnLayers = [AttentionKind.Auto, AttentionKind.Local] },
        ["wide local"] = ModelTests.Small with
        {
            AttnLayers = [AttentionKind.Local],
            LocalNumChunksBefore = 3,
            LocalWrap = false,
        },
        ["every key once a round"] = ModelTests.Small with
        {
            LshPreset = AttentionPreset.Strict with
            {
                Duplicates = DuplicateCorrection.None,
                Rotations = RotationScope.Shared,
                KeyNorm = KeyNorm.L2,
            },
            NumBuckets = [4, 2],
            LshLogitScale = 1.5,
        },
    };

    [OneTimeSetUp]
    public void Open() => _context = new ReformerContext();

    [OneTimeTearDown]
    public void Close() => _context.Dispose();

    [Test]
    public void Logits_OfEveryToken_AreThoseOfTheWholePass(
        [Values(
            "text", "other chunks", "floats, no positions", "mean, full", "auto", "wide local",
            "every key once a round")]
            string name,
        [Values(1, 7, 8, 9, 50)] int prompt
    )
    {
        const int Last = 80;
        using ReformerModel model = ReformerModel.Create(Models[name], _context, 3);
        var run = new RunOptions { Seed = 5, Rounds = prompt == 50 ? 3 : null };
        int[] ids = Ids(Last);
        using var cache = new TokenCache(model, run, Last);
        for (int length = prompt; length <= Last; length++)
        {
            Assert.That(cache.IsExact(length), Is.True);
            float[] cached = cache.NextTokenLogits(ids.AsSpan(0, length)).ToArray<float>();
            AssertClose(cached, Whole(model, ids[..length], run), $"{length} tokens");
        }
    }

    /// <summary>On the CUDA backend, against whole passes on the CPU.</summary>
    [TestCase("text", 7, 30)]
    [TestCase("mean, full", 1, 24)]
    [TestCase("every key once a round", 9, 24)]
    public void LogitsOnCuda_OfEveryToken_AreThoseOfTheWholePass(string name, int prompt, int last)
    {
        using ReformerContext cuda = CudaOnHost.Open();
        using ReformerModel model = ReformerModel.Create(Models[name], _context, 3);
        using ReformerModel onCuda = ReformerModel.Create(Models[name], cuda, 3);
        var run = new RunOptions { Seed = 5 };
        int[] ids = Ids(last);
        using var cache = new TokenCache(onCuda, run, last);
        for (int length = prompt; length <= last; length++)
        {
            float[] cached = cache.NextTokenLogits(ids.AsSpan(0, length)).ToArray<float>();
            AssertClose(cached, Whole(model, ids[..length], run), $"{length} tokens");
        }
    }

    [Test]
    public void TextOnCuda_WithTheCache_IsTheTextWithoutItAndTheCpus([Values] ResidualMode residual)
    {
        ReformerConfig config = ModelTests.Small with
        {
            AttnLayers = [AttentionKind.Lsh, AttentionKind.Full, AttentionKind.Local],
            Residual = residual,
        };
        using ReformerContext cuda = CudaOnHost.Open();
        var options = new GenerationOptions { Count = 24, Temperature = 0, Seed = 2 };
        int[] cpu = Text(_context, CacheUse.Off);
        Assert.That(cpu.Distinct().Count(), Is.GreaterThan(3), "a text in which something happens");
        Assert.That(Text(cuda, CacheUse.Off), Is.EqualTo(cpu));
        Assert.That(Text(cuda, CacheUse.Auto), Is.EqualTo(cpu));

        int[] Text(ReformerContext context, CacheUse use)
        {
            using ReformerModel model = ReformerModel.Create(config, context, 3);
            using var generator = new Generator(model);
            return [.. generator.Generate([1, 2, 3], options with { Cache = use })];
        }
    }

    /// <summary>Each text goes on with its own ids, though one generator draws both.</summary>
    [Test]
    public void TwoTexts_OfOneGenerator_DoNotMix([Values] bool onCuda)
    {
        using ReformerContext context = onCuda ? CudaOnHost.Open() : new ReformerContext(threads: 1);
        using ReformerModel model = ReformerModel.Create(ModelTests.Small, context, 3);
        using var generator = new Generator(model);
        var options = new GenerationOptions { Count = 12, Temperature = 1, Seed = 2 };
        int[] first = [.. generator.Generate([1, 2], options)];
        int[] second = [.. generator.Generate([7, 8, 9], options)];
        Assert.That(first, Is.Not.EqualTo(second));
        Assert.That(
            generator.Generate([1, 2], options).Zip(generator.Generate([7, 8, 9], options)),
            Is.EqualTo(first.Zip(second)));
    }

    [Test]
    public void Text_ThatLeavesTheExactRange_SaysWhere([Values] bool onCuda)
    {
        using ReformerContext context = onCuda ? CudaOnHost.Open() : new ReformerContext(threads: 1);
        using ReformerModel model = ReformerModel.Create(ModelTests.Small, context, 3);
        TensorView bias = model
            .Parameters.Single(parameter =>
                parameter.Name == "reformer.encoder.layers.1.feed_forward.output.dense.bias"
            )
            .Value;
        float[] values = bias.ToArray<float>();
        using var generator = new Generator(model);
        var options = new GenerationOptions { Count = 9 };
        using IEnumerator<int> text = generator.Generate([1, 2, 3], options).GetEnumerator();
        for (int token = 0; token < 4; token++)
        {
            Assert.That(text.MoveNext(), Is.True);
        }

        values[5] = float.PositiveInfinity; // the logits are NaN then, which is not what is said
        bias.CopyFrom<float>(values);
        ResidualRangeException thrown = Assert.Throws<ResidualRangeException>(() => text.MoveNext())!;
        Assert.That((thrown.Layer, thrown.Stream, thrown.Example, thrown.Token), Is.EqualTo((1, 2, 0L, 6L)));
    }

    [Test]
    public void Sequence_ThatIsNoContinuation_StartsAgain()
    {
        using ReformerModel model = ReformerModel.Create(ModelTests.Small, _context, 3);
        using var cache = new TokenCache(model, default, 200);
        int[] ids = Ids(60);
        foreach (int length in (int[])[20, 21, 23, 12, 13, 60, 3])
        {
            AssertClose(
                cache.NextTokenLogits(ids.AsSpan(0, length)).ToArray<float>(), Whole(model, ids[..length], default),
                $"{length} tokens");
        }
    }

    [Test]
    public void GreedyText_OfATrainedModel_IsTheSameWithAndWithoutTheCache()
    {
        using ReformerModel model = ReformerModel.Create(
            TrainerTests.Config with
            {
                LshPreset = AttentionPreset.Strict,
            },
            _context,
            1
        );
        using var trainer = new Trainer(model, new DuplicationTask(31), TrainerTests.Options with { Steps = 20 });
        for (int step = 0; step < 20; step++)
        {
            trainer.RunStep();
        }

        using var generator = new Generator(model);
        var options = new GenerationOptions { Count = 40, Temperature = 0, Seed = 2 };
        foreach (int length in (int[])[1, 5, 20])
        {
            int[] prompt = [.. Ids(length).Select(id => id % model.Config.VocabSize)];
            int[] Text(CacheUse use) => [.. generator.Generate(prompt, options with { Cache = use })];
            int[] off = Text(CacheUse.Off);
            Assert.That(Text(CacheUse.On), Is.EqualTo(off));
            Assert.That(Text(CacheUse.Auto), Is.EqualTo(off));
        }
    }

    /// <summary>
    /// Beyond the capacity it starts with, beyond the window, and with a model that runs other passes in between.
    /// </summary>
    [TestCase(600, null, TestName = "Text_LongerThanTheFirstCapacity_IsTheSame")]
    [TestCase(60, 24, TestName = "Text_LongerThanTheContext_IsTheSame")]
    [TestCase(300, null, TestName = "Text_LongerThanThePositions_IsTheSame")]
    public void Text_WithTheCache_IsTheSame(int count, int? context)
    {
        ReformerConfig config =
            count == 600 ? ModelTests.Small with { Positions = PositionEncoding.None } : ModelTests.Small;
        using ReformerModel model = ReformerModel.Create(config, _context, 4);
        using var generator = new Generator(model);
        using var other = new Generator(model);
        var options = new GenerationOptions
        {
            Count = count,
            Temperature = 0.7f,
            TopK = 9,
            Seed = 8,
            Context = context,
            Cache = CacheUse.On,
        };
        int[] expected = [.. generator.Generate([1, 2, 3], options with { Cache = CacheUse.Off })];
        Assert.That(expected, Has.Length.EqualTo(count));
        var found = new List<int>();
        foreach (int id in generator.Generate([1, 2, 3], options))
        {
            found.Add(id);
            if (found.Count % 50 == 20)
            {
                Assert.That(other.Generate([4], new GenerationOptions { Count = 2 }).Count(), Is.EqualTo(2));
            }
        }

        Assert.That(found, Is.EqualTo(expected));
    }

    [Test]
    public void Auto_WhereALaterTokenChangesEarlierOnes_KeepsNothing()
    {
        using ReformerModel model = ReformerModel.Create(
            ModelTests.Small with
            {
                LshPreset = AttentionPreset.Trax,
            },
            _context,
            3
        );
        using var cache = new TokenCache(model, default, 100);
        Assert.That(
            (cache.IsExact(8), cache.IsExact(9), cache.IsExact(100)), Is.EqualTo((true, false, false)),
            "hashed beyond a chunk of 8");
        using var generator = new Generator(model);
        var options = new GenerationOptions { Count = 100, Temperature = 0, Seed = 2 };
        int[] Text(CacheUse use) => [.. generator.Generate(Ids(4), options with { Cache = use })];
        int[] off = Text(CacheUse.Off);
        Assert.That(Text(CacheUse.Auto), Is.EqualTo(off));
        int[] on = Text(CacheUse.On);
        Assert.That(on, Has.Length.EqualTo(100));
        Assert.That(on, Is.Not.EqualTo(off), "a model of random weights shows the other windows");
    }

    [TestCase(true, 1, 0, false, ExpectedResult = true)]
    [TestCase(true, 0, 0, true, ExpectedResult = true)]
    [TestCase(true, 1, 1, true, ExpectedResult = false)]
    [TestCase(true, 2, 0, true, ExpectedResult = false)]
    [TestCase(true, 2, 0, false, ExpectedResult = true)]
    [TestCase(false, 3, 2, true, ExpectedResult = true)]
    public bool IsPrefixCausal_OfLocalAttention_NeedsThatNoChunkComesFromBehind(
        bool wrap,
        int before,
        int after,
        bool repeat
    ) => (AttentionOptions.Local(causal: true, 8, before, after, wrap) with { RepeatChunks = repeat }).IsPrefixCausal;

    [Test]
    public void IsPrefixCausal_WithoutCausality_IsFalse() =>
        Assert.Multiple(() =>
        {
            Assert.That(AttentionOptions.Full(causal: true).IsPrefixCausal, Is.True);
            Assert.That(AttentionOptions.Full(causal: false).IsPrefixCausal, Is.False);
            Assert.That(
                AttentionPreset.All.Where(preset =>
                    AttentionOptions.Lsh(preset, true, 8, 1, new BucketFactors(4)).IsPrefixCausal
                ),
                Is.EqualTo((AttentionPreset[])[AttentionPreset.Strict])
            );
        });

    [Test]
    public void Value_BeyondTheExactRange_IsReportedWithItsToken()
    {
        using ReformerModel model = ReformerModel.Create(ModelTests.Small, _context, 3);
        using var cache = new TokenCache(model, default, 100);
        int[] ids = Ids(30);
        cache.NextTokenLogits(ids.AsSpan(0, 29));
        TensorView bias = model
            .Parameters.Single(parameter =>
                parameter.Name == "reformer.encoder.layers.1.feed_forward.output.dense.bias"
            )
            .Value;
        float[] values = bias.ToArray<float>();
        values[5] = 1000;
        bias.CopyFrom<float>(values);
        ResidualRangeException thrown = Assert.Throws<ResidualRangeException>(() => cache.NextTokenLogits(ids))!;
        Assert.That((thrown.Layer, thrown.Stream, thrown.Example, thrown.Token), Is.EqualTo((1, 2, 0L, 29L)));

        // The token is not in the cache then: the next call starts again.
        values[5] = 0;
        bias.CopyFrom<float>(values);
        AssertClose(cache.NextTokenLogits(ids).ToArray<float>(), Whole(model, ids, default), "after the refusal");
    }

    [Test]
    public void Prompt_WithAnIdThatTheModelDoesNotHave_IsRefused([Values] CacheUse use)
    {
        using ReformerModel model = ReformerModel.Create(ModelTests.Small, _context, 3);
        using var generator = new Generator(model);
        Assert.That(
            () => generator.Generate([1, 2, 31], new GenerationOptions { Count = 2, Cache = use }).Count(),
            Throws.ArgumentException.With.Message.Contains("ids: expected 0 .. 30, found 31 in example 0, token 2"));
    }

    [Test]
    public void Token_OfASteadyState_AllocatesNothing()
    {
        using var context = new ReformerContext(threads: 1);
        using ReformerModel model = ReformerModel.Create(ModelTests.Small, context, 3);
        using var cache = new TokenCache(model, default, 100);
        int[] ids = Ids(100);
        int length = 40;
        Allocations.AssertNone(15, () => cache.NextTokenLogits(ids.AsSpan(0, length++)));
    }

    private static int[] Ids(int count)
    {
        var random = new Random(11);
        return [.. Enumerable.Range(0, count).Select(_ => random.Next(31))];
    }

    private static float[] Whole(ReformerModel model, int[] ids, in RunOptions options)
    {
        var batch = new TokenBatch(1, ids.Length);
        ids.CopyTo(batch.Ids);
        var logits = new float[model.Config.VocabSize];
        model.NextTokenLogits(batch, logits, options);
        return logits;
    }

    private static void AssertClose(float[] found, float[] expected, string what)
    {
        double largest = expected.Max(Math.Abs);
        double worst = found.Zip(expected, (a, b) => Math.Abs((double)a - b)).Max();
        Assert.That(worst / largest, Is.LessThan(Limit), what);
        Assert.That(Array.IndexOf(found, found.Max()), Is.EqualTo(Array.IndexOf(expected, expected.Max())), what);
    }
}
