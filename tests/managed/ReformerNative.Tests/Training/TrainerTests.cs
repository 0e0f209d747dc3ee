using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Tests.Model;
using ReformerNative.Training;

namespace ReformerNative.Tests.Training;

public sealed class TrainerTests
{
    private static readonly string[] CheckpointFiles =
    [
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "trainer.json",
    ];

    /// <summary>Everything random at once: dropout everywhere, hashes, two batches a step.</summary>
    internal static readonly ReformerConfig Config = ModelTests.Small with
    {
        VocabSize = 32,
        HiddenDropoutProb = 0.1,
        LshAttentionProbsDropoutProb = 0.1,
        LocalAttentionProbsDropoutProb = 0.1,
        LabelSmoothing = 0.1,
    };

    internal static readonly TrainingOptions Options = new()
    {
        Seed = 11,
        Steps = 20,
        BatchSize = 2,
        Length = 36,
        AccumulationSteps = 2,
        LearningRate = 3e-3,
        WarmupSteps = 4,
        WeightDecay = 0.01,
        EvaluateEvery = 5,
        EvaluationBatches = 2,
        KeepCheckpoints = 0,
    };

    private static readonly DuplicationTask Task = new(31);

    private ReformerContext _context = null!;

    [OneTimeSetUp]
    public void Open() => _context = new ReformerContext();

    [OneTimeTearDown]
    public void Close() => _context.Dispose();

    [Test]
    public void TwentySteps_AndTenResumedForTen_EndWithTheSameBytes(
        [Values] OptimizerKind optimizer, [Values] ResidualMode residual)
    {
        using var whole = new TemporaryDirectory();
        using var parts = new TemporaryDirectory();
        ReformerConfig config = Config with { Residual = residual };
        TrainingOptions options = Options with { Optimizer = optimizer, CheckpointDirectory = whole.Path };
        string last;
        using (ReformerModel model = ReformerModel.Create(config, _context, 1))
        using (var trainer = new Trainer(model, Task, options))
        {
            last = trainer.Run().Checkpoint!;
        }

        using (ReformerModel model = ReformerModel.Create(config, _context, 1))
        using (var trainer = new Trainer(model, Task, options with { CheckpointDirectory = parts.Path }))
        {
            for (int step = 0; step < 10; step++)
            {
                trainer.RunStep();
            }

            trainer.SaveCheckpoint(parts.Path);
        }

        string first = CheckpointStore.Resolve(parts.Path);
        using (ReformerModel model = ReformerModel.Load(first, _context))
        using (Trainer trainer = Trainer.Resume(model, first, Task, options with { CheckpointDirectory = parts.Path }))
        {
            Assert.That(trainer.Step, Is.EqualTo(10));
            TrainingResult result = trainer.Run();
            Assert.That(result.Completed, Is.True);
            AssertSameFiles(last, result.Checkpoint!);
        }

        Assert.That(
            File.ReadAllBytes(Path.Combine(last, "model.safetensors")).AsSpan()
                .SequenceEqual(File.ReadAllBytes(Path.Combine(first, "model.safetensors"))),
            Is.False, "training changes something");
    }

    [Test]
    public void Run_OnOneAndThreeThreads_EndsWithTheSameBytes()
    {
        string Train(int threads, TemporaryDirectory directory)
        {
            using var context = new ReformerContext(threads: threads);
            using ReformerModel model = ReformerModel.Create(Config, context, 1);
            using var trainer = new Trainer(
                model,
                Task,
                Options with
                {
                    Steps = 5,
                    CheckpointDirectory = directory.Path,
                }
            );
            return trainer.Run().Checkpoint!;
        }

        using var one = new TemporaryDirectory();
        using var three = new TemporaryDirectory();
        AssertSameFiles(Train(1, one), Train(3, three));
    }

    [Test]
    public void Run_Cancelled_StopsAfterTheStepAndSavesIt()
    {
        using var directory = new TemporaryDirectory();
        using var cancellation = new CancellationTokenSource();
        using ReformerModel model = ReformerModel.Create(Config, _context, 1);
        using var trainer = new Trainer(model, Task, Options with { CheckpointDirectory = directory.Path });
        var seen = new List<TrainingStep>();
        TrainingResult result = trainer.Run(
            new Observer(step =>
            {
                seen.Add(step);
                if (step.Step == 3)
                {
                    cancellation.Cancel();
                }
            }),
            cancellation.Token);

        // The token was cancelled while step 3 was reported: too late for its own checkpoint, so the run saves on its
        // way out.
        Assert.Multiple(() =>
        {
            Assert.That(result.Completed, Is.False);
            Assert.That(result.Last.Step, Is.EqualTo(3));
            Assert.That(seen.Select(step => step.Step), Is.EqualTo(new[] { 1, 2, 3 }));
            Assert.That(CheckpointStore.List(directory.Path).Select(item => item.Step), Is.EqualTo(new[] { 3 }));
            Assert.That(result.Checkpoint, Is.EqualTo(CheckpointStore.Resolve(directory.Path)));
        });
    }

    /// <summary>Without a gradient an update is the decay alone.</summary>
    [Test]
    public void WeightDecay_TakesWeightsAndEmbeddings_ButNoVectors([Values] OptimizerKind kind)
    {
        using var context = new ReformerContext();
        using ReformerModel model = ReformerModel.Create(Config, context, 4);
        using var optimizer = new Optimizer(model, Options with { Optimizer = kind, WeightDecay = 0.5 });
        float[][] before = [.. model.Parameters.Select(parameter => parameter.Value.ToArray<float>())];
        model.ForwardBackward(ModelTests.RandomBatch(1, 36, Config.VocabSize, 5), default); // there are gradients now
        model.ZeroGradients();
        optimizer.MeasureNorm();
        optimizer.Update(0.5, 1);
        Assert.That(before.Max(values => values.Max()), Is.EqualTo(1), "weights of norms");
        foreach ((Parameter parameter, float[] values) in model.Parameters.Zip(before))
        {
            float kept = parameter.Value.Shape.Rank >= 2 ? 0.75f : 1;
            Assert.That(
                parameter.Value.ToArray<float>(), Is.EqualTo(values.Select(value => kept * value)), parameter.Name);
        }
    }

    [Test]
    public void Options_ByDefault_AreThoseOfTheDocumentation()
    {
        TrainingOptions options = new();
        Assert.Multiple(() =>
        {
            Assert.That(options.Steps, Is.EqualTo(1000));
            Assert.That((options.BatchSize, options.Length, options.AccumulationSteps), Is.EqualTo((1, 1024, 1)));
            Assert.That(options.Optimizer, Is.EqualTo(OptimizerKind.AdamW));
            Assert.That(options.LearningRate, Is.EqualTo(1e-3));
            Assert.That(options.Schedule, Is.EqualTo(LearningRateSchedule.Cosine));
            Assert.That((options.WarmupSteps, options.FinalLearningRateFraction), Is.EqualTo((100L, 0.1)));
            Assert.That((options.Beta1, options.Beta2, options.Epsilon), Is.EqualTo((0.9, 0.98, 1e-8)));
            Assert.That((options.WeightDecay, options.MaxGradientNorm), Is.EqualTo((0.0, 1.0)));
            Assert.That(
                (options.AdafactorDecayExponent, options.AdafactorClipThreshold, options.AdafactorScaleParameter),
                Is.EqualTo((0.8, 1.0, true)));
            Assert.That((options.EvaluateEvery, options.EvaluationBatches), Is.EqualTo((0L, 8)));
            Assert.That((options.CheckpointEvery, options.KeepCheckpoints), Is.EqualTo((0L, 2)));
        });
    }

    /// <summary>The same batch again and again has the gradient of once, however many of it make a step.</summary>
    [Test]
    public void GradientNorm_OfEqualBatches_IsThatOfOne()
    {
        TrainingStep Step(int batches)
        {
            using var context = new ReformerContext();
            ReformerConfig config = ModelTests.Small with { VocabSize = 32, AttnLayers = [AttentionKind.Local] };
            using ReformerModel model = ReformerModel.Create(config, context, 4);
            using var trainer = new Trainer(
                model, new FirstBatch(), Options with { AccumulationSteps = batches, EvaluateEvery = 0 });
            return trainer.RunStep();
        }

        TrainingStep one = Step(1), four = Step(4);
        Assert.That(four.GradientNorm, Is.EqualTo(one.GradientNorm).Within(1e-6 * one.GradientNorm));
        Assert.That(four.Loss.Loss, Is.EqualTo(one.Loss.Loss).Within(1e-6));
        Assert.That(four.Tokens, Is.EqualTo(4 * one.Tokens));
    }

    [Test]
    public void Step_SaysHowManyTokensASecond() =>
        Assert.That(new TrainingStep(1, default, 0, 0, 300, 0.5, null, null).TokensPerSecond, Is.EqualTo(600));

    [Test]
    public void HeldOutLoss_OfAModel_IsTheTrainers()
    {
        using var context = new ReformerContext();
        using ReformerModel model = ReformerModel.Create(Config, context, 4);
        using var trainer = new Trainer(model, Task, Options);
        var batch = new TokenBatch(Options.BatchSize, Options.Length);
        var run = new RunOptions { Seed = Options.Seed, Step = 9, Rounds = 3 };
        LossResult measured = HeldOutLoss.Measure(model, Task, batch, Options.EvaluationBatches, run);
        Assert.That(measured, Is.EqualTo(trainer.EvaluateHeldOut(rounds: 3)));
        Assert.That(
            measured.Count, Is.EqualTo(2 * HeldOutLoss.Measure(model, Task, batch, 1, run).Count), "both batches");
        Assert.That(
            () => HeldOutLoss.Measure(model, Task, batch, 0, run),
            Throws.TypeOf<ArgumentOutOfRangeException>().With.Message.Contains("batches"));
        using var cancellation = new CancellationTokenSource();
        cancellation.Cancel();
        Assert.That(
            () => HeldOutLoss.Measure(model, Task, batch, 1, run, cancellation.Token),
            Throws.InstanceOf<OperationCanceledException>());
    }

    [Test]
    public void Run_Intervals_EvaluateAndSaveWhenDue()
    {
        using var directory = new TemporaryDirectory();
        using ReformerModel model = ReformerModel.Create(Config, _context, 1);
        using var trainer = new Trainer(
            model,
            Task,
            Options with
            {
                Steps = 7,
                EvaluateEvery = 3,
                CheckpointEvery = 2,
                KeepCheckpoints = 3,
                CheckpointDirectory = directory.Path,
            }
        );
        var seen = new List<TrainingStep>();
        TrainingResult result = trainer.Run(new Observer(seen.Add));
        Assert.Multiple(() =>
        {
            Assert.That(
                seen.Where(step => step.HeldOut is not null).Select(step => step.Step), Is.EqualTo(new[] { 3, 6, 7 }));
            Assert.That(
                seen.Where(step => step.Checkpoint is not null).Select(step => step.Step),
                Is.EqualTo(new[] { 2, 4, 6, 7 }));
            Assert.That(CheckpointStore.List(directory.Path).Select(item => item.Step), Is.EqualTo(new[] { 4, 6, 7 }));
            Assert.That(result.HeldOut, Is.EqualTo(trainer.EvaluateHeldOut()), "always the same batches");
            Assert.That(
                seen.Select(step => step.LearningRate),
                Is.EqualTo(Enumerable.Range(1, 7).Select(s => trainer.Options.LearningRateAt(s))));
            Assert.That(
                seen,
                Has.All.Matches<TrainingStep>(step =>
                    step.Tokens == 2 * 2 * 36 && step.GradientNorm > 0 && step.Seconds > 0
                )
            );
        });
    }

    [Test]
    public void Training_OfAFixedBatch_LowersTheLoss([Values] OptimizerKind optimizer)
    {
        using ReformerModel model = ReformerModel.Create(ModelTests.Small with { VocabSize = 32 }, _context, 1);
        using var trainer = new Trainer(
            model,
            new OneBatch(),
            Options with
            {
                Optimizer = optimizer,
                LearningRate = optimizer == OptimizerKind.AdamW ? 0.01 : 0.1,
                Steps = 60,
            }
        );
        double first = trainer.RunStep().Loss.Loss;
        TrainingResult result = trainer.Run();
        Assert.That(result.Last.Loss.Loss, Is.LessThan(first / 4));
    }

    [Test]
    public void Resume_WithOtherDataOrOptions_IsRefused()
    {
        using var directory = new TemporaryDirectory();
        using ReformerModel model = ReformerModel.Create(Config, _context, 1);
        string checkpoint;
        using (var trainer = new Trainer(model, Task, Options))
        {
            trainer.RunStep();
            checkpoint = trainer.SaveCheckpoint(directory.Path);
        }

        Assert.Multiple(() =>
        {
            Assert.That(
                () => Trainer.Resume(model, checkpoint, new DuplicationTask(30)),
                Throws.ArgumentException.With.Message.Contains("31 symbols").And.Message.Contains("30 symbols"));
            Assert.That(
                () => Trainer.Resume(model, checkpoint, Task, Options with { LearningRate = 1 }),
                Throws.ArgumentException.With.Message.Contains("LearningRate"));
            Assert.That(
                () =>
                    Trainer.Resume(model, checkpoint, Task, Options with { Steps = 99, CheckpointEvery = 3 }).Dispose(),
                Throws.Nothing
            );
            Assert.That(
                () => Trainer.Resume(model, checkpoint, Task).Dispose(), Throws.Nothing,
                "the options are in the checkpoint");
            Assert.That(
                () => new Trainer(model, Task, Options with { CheckpointDirectory = directory.Path }),
                Throws.InvalidOperationException.With.Message.Contains("step-00000001"));
            Assert.That(
                () => new Trainer(model, new DuplicationTask(), Options),
                Throws.ArgumentException.With.Message.Contains("32 ids"));
        });
    }

    [Test]
    public void Resume_FromAnOlderCheckpoint_IsRefusedInTheSameDirectory()
    {
        using var directory = new TemporaryDirectory();
        using ReformerModel model = ReformerModel.Create(Config, _context, 1);
        TrainingOptions options = Options with { CheckpointDirectory = directory.Path, Steps = 2, CheckpointEvery = 1 };
        using (var trainer = new Trainer(model, Task, options))
        {
            trainer.Run();
        }

        string older = CheckpointStore.List(directory.Path)[0].Path;
        Assert.That(
            () => Trainer.Resume(model, older, Task, options),
            Throws.InvalidOperationException.With.Message.Contains("step-00000002"));
    }

    [Test]
    public void DamagedCheckpoint_Resumed_IsRefused()
    {
        using var directory = new TemporaryDirectory();
        using ReformerModel model = ReformerModel.Create(Config, _context, 1);
        string checkpoint;
        using (var trainer = new Trainer(model, Task, Options))
        {
            trainer.RunStep();
            checkpoint = trainer.SaveCheckpoint(directory.Path);
        }

        string state = Path.Combine(checkpoint, "trainer.json");
        string good = File.ReadAllText(state);
        Assert.Multiple(() =>
        {
            string Bad(string text, string by) => good.Replace(text, by, StringComparison.Ordinal);
            foreach (
                (string bad, string found) in ((string, string)[])
                    [
                        ("", "found an error in line 1: "),
                        ("{", "found an error in line 1: "),
                        ("null", "found null"),
                        ("[]", "found a value of another kind in line 1"),
                        ("{}", "found none of 'format', 'step', "),
                        (good[..(good.Length / 2)], "found an error in line "),
                        (Bad("\"format\": 1", "\"format\": 2"), "found format 2"),
                        (Bad("\"steps\": 20", "\"steps\": -1"), "Steps"),
                        (Bad("\"step\": 1", "\"step\": \"x\""), "found a value of another kind at $.step in line 3"),
                    ]
            )
            {
                File.WriteAllText(state, bad);
                Assert.That(
                    () => Trainer.Resume(model, checkpoint, Task),
                    Throws.TypeOf<ReformerFormatException>()
                        .With.Message.StartsWith(state).And.Message.Contains(found)
                );
            }

            File.WriteAllText(state, good);
            Assert.That(() => Trainer.Resume(model, checkpoint, Task).Dispose(), Throws.Nothing);

            string moments = Path.Combine(checkpoint, "optimizer.safetensors");
            byte[] whole = File.ReadAllBytes(moments);
            File.WriteAllBytes(moments, whole.AsSpan(0, whole.Length / 2));
            Assert.That(
                () => Trainer.Resume(model, checkpoint, Task),
                Throws.TypeOf<ReformerFormatException>().With.Message.StartsWith(moments));
            BitConverter.TryWriteBytes(whole.AsSpan(whole.Length - 4), float.NaN);
            File.WriteAllBytes(moments, whole);
            Assert.That(
                () => Trainer.Resume(model, checkpoint, Task),
                Throws.TypeOf<ReformerFormatException>().With.Message.Contains("finite"));
            File.Delete(moments);
            Assert.That(() => Trainer.Resume(model, checkpoint, Task), Throws.TypeOf<FileNotFoundException>());
            File.Delete(state);
            Assert.That(() => Trainer.Resume(model, checkpoint, Task), Throws.TypeOf<FileNotFoundException>());
        });
    }

    [Test]
    public void Loss_NotFinite_StopsBeforeTheUpdate()
    {
        using ReformerModel model = ReformerModel.Create(Config with { Residual = ResidualMode.Float }, _context, 1);
        using var trainer = new Trainer(model, Task, Options);
        Parameter bias = model.Parameters.Single(parameter => parameter.Name == "lm_head.bias");
        bias.Value.CopyFrom<float>(Enumerable.Repeat(float.NaN, 32).ToArray());
        float[] before = model.Parameters[0].Value.ToArray<float>();
        TrainingDivergedException error = Assert.Throws<TrainingDivergedException>(() => trainer.RunStep())!;
        Assert.Multiple(() =>
        {
            Assert.That(error.Step, Is.EqualTo(1));
            Assert.That(trainer.Step, Is.Zero);
            Assert.That(model.Parameters[0].Value.ToArray<float>(), Is.EqualTo(before));
        });
    }

    [Test]
    public void SteadyState_OfASteadyRun_AllocatesNextToNothing()
    {
        using ReformerModel model = ReformerModel.Create(Config, _context, 1);
        using var trainer = new Trainer(model, Task, Options with { Steps = 1000 });
        for (int i = 0; i < 3; i++)
        {
            trainer.RunStep();
        }

        long before = GC.GetAllocatedBytesForCurrentThread();
        const int steps = 10;
        for (int i = 0; i < steps; i++)
        {
            trainer.RunStep();
        }

        Assert.That((GC.GetAllocatedBytesForCurrentThread() - before) / steps, Is.LessThan(1024), "bytes a step");
    }

    [Test]
    public void Messages_OfARun_ReachTheLogger()
    {
        using var directory = new TemporaryDirectory();
        var logger = new ListLogger();
        using ReformerModel model = ReformerModel.Create(Config, _context, 1, logger);
        using var trainer = new Trainer(
            model,
            Task,
            Options with
            {
                Steps = 2,
                EvaluateEvery = 2,
                CheckpointDirectory = directory.Path,
            },
            logger
        );
        trainer.Run();
        Assert.Multiple(() =>
        {
            Assert.That(logger.Messages, Has.One.Contains("num_buckets was not given"));
            Assert.That(logger.Messages, Has.One.StartsWith("step 2: held-out loss"));
            Assert.That(logger.Messages, Has.One.StartsWith("step 2: checkpoint"));
        });
    }

    [TestCase(LearningRateSchedule.Constant, "0.25 0.5 0.75 1 1 1 1 1 1 1 1 1")]
    [TestCase(LearningRateSchedule.Linear, "0.25 0.5 0.75 1 0.9 0.8 0.7 0.6 0.5 0.4 0.3 0.2")]
    [TestCase(LearningRateSchedule.Cosine, "0.25 0.5 0.75 1 0.9696 0.8828 0.7531 0.6 0.4469 0.3172 0.2304 0.2")]
    [TestCase(LearningRateSchedule.Rsqrt, "0.25 0.5 0.75 1 0.8944 0.8165 0.7559 0.7071 0.6667 0.6325 0.603 0.5774")]
    public void LearningRate_OverARun_TakesItsCourse(LearningRateSchedule schedule, string rates)
    {
        var options = new TrainingOptions
        {
            LearningRate = 1,
            WarmupSteps = 4,
            Steps = 12,
            FinalLearningRateFraction = 0.2,
            Schedule = schedule,
        };
        double[] expected =
        [
            .. rates.Split(' ').Select(text => double.Parse(text, System.Globalization.CultureInfo.InvariantCulture)),
        ];
        Assert.That(
            Enumerable.Range(1, 12).Select(step => options.LearningRateAt(step)), Is.EqualTo(expected).Within(5e-5));
        Assert.That((options with { WarmupSteps = 0 }).LearningRateAt(1), Is.LessThanOrEqualTo(1).And.GreaterThan(0.9));
    }

    [Test]
    public void ImpossibleOptions_AreAllListed()
    {
        var options = new TrainingOptions
        {
            BatchSize = 0,
            Length = 1,
            Beta2 = 1,
            LearningRate = double.NaN,
            MaxGradientNorm = -1,
            EvaluationRounds = 0,
        };
        ArgumentException error = Assert.Throws<ArgumentException>(options.Validate)!;
        Assert.That(
            error.Message.Split("; ").Select(problem => problem.Split(':')[0]),
            Is.EquivalentTo(
                new[] { "BatchSize", "Length", "Beta2", "LearningRate", "MaxGradientNorm", "EvaluationRounds" })
        );
    }

    internal static void AssertSameFiles(string expected, string found)
    {
        Assert.That(Directory.EnumerateFiles(found).Select(Path.GetFileName), Is.EquivalentTo(CheckpointFiles));
        foreach (string file in CheckpointFiles)
        {
            byte[] a = File.ReadAllBytes(Path.Combine(expected, file));
            byte[] b = File.ReadAllBytes(Path.Combine(found, file));
            Assert.That(b.AsSpan().SequenceEqual(a), Is.True, file);
        }
    }

    private sealed class FirstBatch : IBatchSource
    {
        public string Identity => Task.Identity;

        public int VocabularySize => Task.VocabularySize;

        public void Fill(TokenBatch batch, DataSplit split, ulong seed, long index) => Task.Fill(batch, split, seed, 0);
    }

    private sealed class Observer(Action<TrainingStep> report) : IProgress<TrainingStep>
    {
        public void Report(TrainingStep value) => report(value);
    }

    /// <summary>The same examples at every step.</summary>
    private sealed class OneBatch : IBatchSource
    {
        public string Identity => "one batch";

        public int VocabularySize => 32;

        public void Fill(TokenBatch batch, DataSplit split, ulong seed, long index) =>
            Task.Fill(batch, DataSplit.Train, 1, 1);
    }
}
