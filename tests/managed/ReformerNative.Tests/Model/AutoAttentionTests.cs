using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Tests.Model;

/// <summary>
/// Layers of kind auto: dense below the crossover length, LSH from it on, with one set of parameters.
/// </summary>
public sealed class AutoAttentionTests
{
    private static readonly ReformerConfig Auto = ModelTests.Small with
    {
        AttnLayers = [AttentionKind.Local, AttentionKind.Auto, AttentionKind.Auto],
        LshAttentionProbsDropoutProb = 0.2,
        LshLogitScale = 0.3,
    };

    private static readonly ReformerConfig Lsh = Auto with
    {
        AttnLayers = [AttentionKind.Local, AttentionKind.Lsh, AttentionKind.Lsh],
    };
    private static readonly int Crossover = (int)AttentionCost.Crossover(Auto)!;
    private static readonly RunOptions Run = new() { Seed = 4, Step = 2, Dropout = true };

    private ReformerContext _context = null!;

    [OneTimeSetUp]
    public void Open()
    {
        Assert.That(Crossover, Is.InRange(16, 200), "lengths on both sides of it, within the model's positions");
        _context = new ReformerContext();
    }

    [OneTimeTearDown]
    public void Close() => _context.Dispose();

    [Test]
    public void Pairs_AreThoseOfTheMathematics()
    {
        AttentionOptions lsh = AttentionOptions.Lsh(AttentionPreset.Trax, causal: true, 8, 3, new BucketFactors(4));
        Assert.Multiple(() =>
        {
            Assert.That(AttentionCost.Pairs(AttentionOptions.Full(causal: true), 10), Is.EqualTo(55));
            Assert.That(AttentionCost.Pairs(AttentionOptions.Full(causal: false), 10), Is.EqualTo(100));
            Assert.That(AttentionCost.Pairs(AttentionOptions.Local(true, 8, 2, 0, true), 10), Is.EqualTo(240));
            Assert.That(AttentionCost.Pairs(lsh, 10), Is.EqualTo(480));
            Assert.That(AttentionCost.Pairs(lsh with { Window = AttentionWindow.Strict }, 10), Is.EqualTo(240));
            Assert.That(
                () => AttentionCost.Pairs(lsh with { Kind = AttentionKind.Auto }, 10), Throws.ArgumentException);
        });
    }

    [Test]
    public void Crossover_IsTheFirstMultipleOfTwoChunksAtWhichLshCostsNoMore(
        [Values("trax", "hf", "lucidrains", "strict")] string preset, [Values(1, 4, 8)] int rounds,
        [Values] bool decoder)
    {
        decoder |= preset == "strict";
        ReformerConfig config = Auto with
        {
            LshPreset = AttentionPreset.FromName(preset),
            IsDecoder = decoder,
            NumHashes = rounds,
            LshAttnChunkLength = 64,
            Task = decoder ? ReformerTask.CausalLanguageModel : ReformerTask.MaskedLanguageModel,
        };
        long crossover = AttentionCost.Crossover(config)!.Value;
        double Excess(long length)
        {
            BucketFactors factors = BucketFactors.Automatic(
                config.Lsh.Buckets, length, 64, config.MaxPositionEmbeddings);
            return AttentionCost.Forward(AttentionOptions.Lsh(config.Lsh, decoder, 64, rounds, factors), length)
                - AttentionCost.Forward(AttentionOptions.Full(decoder), length);
        }

        Assert.Multiple(() =>
        {
            Assert.That(crossover % 128, Is.Zero);
            Assert.That(Excess(crossover), Is.LessThanOrEqualTo(0));
            for (long length = 128; length < crossover; length += 128)
            {
                Assert.That(Excess(length), Is.Positive, $"{length} tokens");
            }

            Assert.That(
                AttentionCost.Crossover(config with { NumHashes = 2 * rounds }), Is.GreaterThan(crossover),
                "more rounds cost more");
            Assert.That(
                AttentionCost.Crossover(
                    config with
                    {
                        NumBuckets = [2],
                        AttentionHeadSize = 128,
                        AttnLayers = [AttentionKind.Lsh],
                    }
                ),
                Is.EqualTo(crossover),
                "what a model chooses at its first use does not move it"
            );
            Assert.That(
                AttentionCost.Resolve(config, AttentionKind.Auto, crossover - 1), Is.EqualTo(AttentionKind.Full));
            Assert.That(AttentionCost.Resolve(config, AttentionKind.Auto, crossover), Is.EqualTo(AttentionKind.Lsh));
            Assert.That(
                AttentionCost.Resolve(config, AttentionKind.Lsh, 1), Is.EqualTo(AttentionKind.Lsh),
                "only auto depends on the length");
        });
    }

    [Test]
    public void Crossover_OfMoreRoundsThanAnyLengthPaysFor_IsNull()
    {
        // One factor of T / C buckets: hashing alone grows with the length faster than dense attention does.
        ReformerConfig config = Auto with
        {
            LshPreset = AttentionPreset.Lucidrains,
            NumHashes = 1 << 16,
            LshAttnChunkLength = 64,
        };
        Assert.That(AttentionCost.Crossover(config), Is.Null);
        Assert.That(AttentionCost.Resolve(config, AttentionKind.Auto, int.MaxValue), Is.EqualTo(AttentionKind.Full));
        Assert.That(
            () => AttentionCost.Crossover(config with { LshAttnChunkLength = 0 }),
            Throws.InstanceOf<ArgumentOutOfRangeException>());
    }

    [Test]
    public void Crossover_AtTheLongestLengthThatIsLookedAt_IsFound()
    {
        // Of two chunks LSH attention sees all that dense attention does, of four chunks half.
        ReformerConfig config = Auto with
        {
            LshPreset = AttentionPreset.HuggingFace,
            NumHashes = 1,
            LshAttnChunkLength = 1 << 22,
            IsDecoder = false,
            Task = ReformerTask.MaskedLanguageModel,
        };
        Assert.That(AttentionCost.Crossover(config), Is.EqualTo(1L << 24));
        Assert.That(AttentionCost.Crossover(config with { LshAttnChunkLength = (1 << 22) + 1 }), Is.Null);
    }

    [Test]
    public void Crossover_OfAStrictWindowWhereTokensSeeBothSides_IsNull()
    {
        ReformerConfig config = Auto with { LshWindow = AttentionWindow.Strict, LshWrap = false, IsDecoder = true };
        Assert.That(AttentionCost.Crossover(config), Is.Not.Null);
        Assert.That(AttentionCost.Crossover(config with { IsDecoder = false }), Is.Null);
    }

    [Test]
    public void AutoModel_HasTheBitsOfLshLayers_AttendingInFullBelowTheCrossover(
        [Values] ResidualMode residual, [Values(-3, 0, 5)] int beyond)
    {
        using ReformerModel auto = ReformerModel.Create(Auto with { Residual = residual }, _context, 3);
        using ReformerModel lsh = ReformerModel.Create(Lsh with { Residual = residual }, _context, 3);
        TokenBatch batch = ModelTests.RandomBatch(2, Crossover + beyond, 31, 7);
        LossResult expected = lsh.ForwardBackward(batch, Run with { FullAttention = beyond < 0 });
        Assert.That(auto.ForwardBackward(batch, Run), Is.EqualTo(expected));
        foreach ((Parameter found, Parameter wanted) in auto.Parameters.Zip(lsh.Parameters))
        {
            Assert.That(found.Name, Is.EqualTo(wanted.Name));
            Assert.That(found.Gradient.ToArray<float>(), Is.EqualTo(wanted.Gradient.ToArray<float>()), found.Name);
        }

        lsh.ZeroGradients();
        Assert.That(
            lsh.ForwardBackward(batch, Run with { FullAttention = beyond >= 0 }), Is.Not.EqualTo(expected),
            "so the comparison can fail");
        Assert.That(
            auto.Config.NumBuckets, beyond < 0 ? Is.Null : Is.Not.Null, "buckets are chosen when something hashes");
    }

    [Test]
    public void Lengths_MayChangeFreely_AndEachChangeOfFormIsLogged()
    {
        using var directory = new TemporaryDirectory();
        var log = new ListLogger();
        TokenBatch shorter = ModelTests.RandomBatch(1, Crossover - 1, 31, 5);
        TokenBatch longer = ModelTests.RandomBatch(1, Crossover + 9, 31, 5);
        LossResult[] losses;
        using (ReformerModel model = ReformerModel.Create(Auto, _context, 1, log))
        {
            losses = [model.Evaluate(shorter), model.Evaluate(longer), model.ForwardBackward(longer, Run)];
            Assert.That(model.MeasureReconstruction().BitIdentical, Is.True);
            model.ForwardBackward(shorter, Run);
            Assert.That(model.MeasureReconstruction().BitIdentical, Is.True);
            Assert.That(model.Evaluate(longer), Is.EqualTo(losses[1]));
            Assert.That(model.Config.AttnLayers, Is.EqualTo(Auto.AttnLayers), "the configuration keeps the word");
            model.Save(directory.Path);
        }

        string[] forms =
        [
            .. log
                .Messages.Where(line => line.StartsWith("auto layers are ", StringComparison.Ordinal))
                .Select(line => line.Split(' ')[3]),
        ];
        Assert.That(forms, Is.EqualTo((string[])["Full", "Lsh", "Full", "Lsh"]));
        Assert.That(
            log.Messages,
            Does.Contain(
                $"auto layers are Full at {Crossover - 1} tokens; LSH costs no more than dense attention from "
                    + $"{Crossover} on"
            )
        );

        using ReformerModel loaded = ReformerModel.Load(directory.Path, _context);
        Assert.That(loaded.Config.AttnLayers, Is.EqualTo(Auto.AttnLayers));
        Assert.That(loaded.Evaluate(longer), Is.EqualTo(losses[1]));
        Assert.That(loaded.Evaluate(shorter), Is.EqualTo(losses[0]));
        using ReformerModel hashed = ReformerModel.Load(
            directory.Path, _context, config => config with { AttnLayers = Lsh.AttnLayers });
        Assert.That(hashed.Evaluate(longer), Is.EqualTo(losses[1]), "the parameters are those of LSH layers");
    }

    [Test]
    public void Generation_AcrossTheCrossover_ResolvesEachLength()
    {
        var log = new ListLogger();
        using ReformerModel model = ReformerModel.Create(Auto, _context, 1, log);
        using var generator = new Generator(model);
        int[] prompt = ModelTests.RandomBatch(1, Crossover - 2, 31, 5).Ids.ToArray();
        Assert.That(generator.Generate(prompt, new GenerationOptions { Count = 4 }).Count(), Is.EqualTo(4));
        Assert.That(
            log.Messages.Count(line => line.StartsWith("auto layers are ", StringComparison.Ordinal)), Is.EqualTo(2));
    }

    [Test]
    public void Plan_OfAutoLayers_IsThatOfTheFormTheyTake()
    {
        TrainingOptions options = new() { BatchSize = 2, Length = Crossover };
        MemoryPlanEntry[] Entries(ReformerConfig config, TrainingOptions run) =>
            [.. MemoryPlan.ForTraining(config, _context, run).Entries];
        Assert.That(Entries(Auto, options), Is.EqualTo(Entries(Lsh, options)));
        options = options with { Length = Crossover - 1 };
        Assert.That(Entries(Auto, options), Is.EqualTo(Entries(Lsh, options with { FullAttention = true })));
    }

    [Test]
    public void Ops_RefuseAuto()
    {
        using var workspace = new Workspace(_context);
        using Tensor x = _context.Zeros(new TensorShape(1, 4, 1, 8));
        using Tensor y = _context.Zeros(new TensorShape(1, 4, 1, 8));
        var op = new Attention
        {
            Options = AttentionOptions.Full(causal: true) with { Kind = AttentionKind.Auto },
            Q = x,
            K = x,
            V = x,
            Out = y,
        };
        Assert.That(
            () => op.Forward(workspace),
            Throws.ArgumentException.With.Message.Contains("options.kind: expected 0 to 2, got -1"));
    }
}
