using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Tests.Model;
using ReformerNative.Training;

namespace ReformerNative.Tests.Training;

/// <summary>Memory becomes speed, and no bit changes.</summary>
public sealed class MemoryBudgetTests
{
    /// <summary>Layers of every kind, twice; dropout everywhere.</summary>
    private static readonly ReformerConfig Config = TrainerTests.Config with
    {
        AttnLayers =
        [
            AttentionKind.Local, AttentionKind.Lsh, AttentionKind.Full, AttentionKind.Lsh, AttentionKind.Local,
            AttentionKind.Full,
        ],
    };

    private static readonly ReformerConfig Encoder = Config with
    {
        IsDecoder = false,
        Task = ReformerTask.MaskedLanguageModel,
        LshPreset = AttentionPreset.Trax,
    };

    private static readonly TrainingOptions Options = TrainerTests.Options with { Steps = 4, EvaluateEvery = 2 };
    private static readonly DuplicationTask Task = new(31);

    private ReformerContext _context = null!;

    private static IEnumerable<TestCaseData> Models()
    {
        foreach (bool onCuda in (bool[])[false, true])
        {
            yield return new TestCaseData(Config, onCuda).SetArgDisplayNames("decoder", onCuda ? "cuda" : "cpu");
            yield return new TestCaseData(Encoder, onCuda).SetArgDisplayNames("encoder", onCuda ? "cuda" : "cpu");
        }
    }

    [OneTimeSetUp]
    public void Open() => _context = new ReformerContext(threads: 2);

    [OneTimeTearDown]
    public void Close() => _context.Dispose();

    [Test]
    public void EveryBudget_IsKept_AndSpentOnStreamsFirst([Values] ResidualMode residual)
    {
        ReformerConfig config = Config with { Residual = residual };
        MemoryPlan least = Plan(null), streams = All(KeepActivations.Streams), all = All(KeepActivations.All);
        Assert.That(least.Kept, Is.EqualTo(Enumerable.Repeat(KeepActivations.Nothing, 6)));
        Assert.That(All(KeepActivations.Nothing).TotalBytes, Is.EqualTo(least.TotalBytes));
        Assert.That(Plan(least.TotalBytes).Kept, Is.EqualTo(least.Kept));
        Assert.That(Plan(streams.TotalBytes).Kept, Is.EqualTo(streams.Kept));
        Assert.That(Plan(all.TotalBytes).Kept, Is.EqualTo(all.Kept));
        Assert.That(Plan(1L << 40).TotalBytes, Is.EqualTo(all.TotalBytes));

        // B x T x (2 E) of each layer, and with everything Q, (K), V, the result, F and the log-sum-exps; hashes with
        // exact residuals.
        const long tokens = 2 * 36;
        Assert.That(streams.TotalBytes - least.TotalBytes, Is.EqualTo(6 * tokens * 2 * 24 * sizeof(float)));
        long values =
            (2 * 3 + 4 * 4) * 24 + 6 * (40 + 3) + (residual == ResidualMode.Exact ? 2 * 3 * config.NumHashes : 0);
        Assert.That(all.TotalBytes - streams.TotalBytes, Is.EqualTo(tokens * values * sizeof(float)));
        Assert.That(
            all.Entries.Select(entry => entry.Name), Does.Contain("kept streams").And.Contain("kept activations"));

        int before = 0;
        for (long budget = least.TotalBytes; budget <= all.TotalBytes; budget += 2500)
        {
            MemoryPlan plan = Plan(budget);
            int sum = plan.Kept.Sum(level => (int)level);
            Assert.That(plan.TotalBytes, Is.LessThanOrEqualTo(budget));
            Assert.That(sum, Is.GreaterThanOrEqualTo(before), "more memory never keeps less");
            Assert.That(
                plan.Kept.Contains(KeepActivations.All) && plan.Kept.Contains(KeepActivations.Nothing), Is.False,
                "streams first");
            before = sum;
        }

        // The layers that hash spare the most for the least.
        MemoryPlan one = Plan(streams.TotalBytes + ((all.TotalBytes - streams.TotalBytes) / 6));
        Assert.That(one.Kept[1], Is.EqualTo(KeepActivations.All));
        Assert.That(one.Kept.Count(level => level == KeepActivations.All), Is.EqualTo(1));

        Assert.That(
            () => Plan(least.TotalBytes - 1),
            Throws
                .ArgumentException.With.Message.Contains($"at least the {least.TotalBytes} bytes")
                .And.Message.Contains($"{least.TotalBytes - 1}")
        );
        Assert.That(() => Plan(-1), Throws.ArgumentException.With.Message.Contains("MemoryBudget"));

        MemoryPlan Plan(long? budget) =>
            MemoryPlan.ForTraining(config, _context, Options with { MemoryBudget = budget });
        MemoryPlan All(KeepActivations level) => MemoryPlan.ForTraining(config, _context, Options, level);
    }

    /// <summary>Held-out losses in between run in the same buffers, those with other rounds in others.</summary>
    [TestCaseSource(nameof(Models))]
    public void EveryBudget_TrainsToTheSameBits(ReformerConfig config, bool onCuda)
    {
        using ReformerContext? cuda = onCuda ? CudaOnHost.Open() : null;
        ReformerContext context = cuda ?? _context;
        TrainingOptions options = onCuda
            ? Options with
            {
                Steps = 1,
                EvaluateEvery = 0,
                AccumulationSteps = 1,
            }
            : Options;
        string? expected = null;
        foreach (long? budget in Budgets(config, context, options))
        {
            string found = Train(config, context, options with { MemoryBudget = budget, EvaluationRounds = 3 });
            Assert.That(found, Is.EqualTo(expected ?? found), $"budget {budget}");
            expected = found;
        }
    }

    /// <summary>
    /// Two batches a step, evaluations with the training rounds: the buffers of the first step are those of the last.
    /// </summary>
    [Test]
    public void Checkpoint_ResumedUnderAnotherBudget_EndsWithTheSameBytes()
    {
        long?[] budgets = [.. Budgets(Config, _context, Options)];
        using var whole = new TemporaryDirectory();
        string last;
        using (ReformerModel model = ReformerModel.Create(Config, _context, 1))
        using (var trainer = new Trainer(model, Task, Options with { CheckpointDirectory = whole.Path }))
        {
            Assert.That(trainer.Kept, Is.Null);
            last = trainer.Run().Checkpoint!;
        }

        using var parts = new TemporaryDirectory();
        TrainingOptions options = Options with { CheckpointDirectory = parts.Path };
        using (ReformerModel model = ReformerModel.Create(Config, _context, 1))
        using (var trainer = new Trainer(model, Task, options with { MemoryBudget = budgets[^1] }))
        {
            Assert.That(trainer.Kept, Has.All.EqualTo(KeepActivations.All));
            trainer.RunStep();
            trainer.SaveCheckpoint(parts.Path);
        }

        foreach ((long? budget, int step) in budgets[..2].Select((budget, i) => (budget, i + 1)))
        {
            string checkpoint = CheckpointStore.Resolve(parts.Path);
            using ReformerModel model = ReformerModel.Load(checkpoint, _context);
            using Trainer trainer = Trainer.Resume(model, checkpoint, Task, options with { MemoryBudget = budget });
            Assert.That(trainer.Step, Is.EqualTo(step));
            if (step == 2)
            {
                TrainerTests.AssertSameFiles(last, trainer.Run().Checkpoint!);
            }
            else
            {
                trainer.RunStep();
                trainer.SaveCheckpoint(parts.Path);
            }
        }
    }

    /// <summary>Kept streams are the forward pass's own bits, where inversion gives back rounded ones.</summary>
    [Test]
    public void FloatResiduals_DifferFromTheInvertedRunByRounding_AndNotBetweenLevels()
    {
        ReformerConfig config = Config with { Residual = ResidualMode.Float };
        TokenBatch batch = ModelTests.RandomBatch(2, 40, 31, 5);
        float[][] Gradients(KeepActivations level)
        {
            using ReformerModel model = ReformerModel.Create(config, _context, 1);
            model.ForwardBackward(
                batch,
                new RunOptions
                {
                    Seed = 3,
                    Dropout = true,
                    Keep = [.. Enumerable.Repeat(level, 6)],
                }
            );
            Assert.That(
                model.MeasureReconstruction().BitIdentical, Is.EqualTo(level != KeepActivations.Nothing), $"{level}");
            return [.. model.Parameters.Select(parameter => parameter.Gradient.ToArray<float>())];
        }

        float[][] inverted = Gradients(KeepActivations.Nothing),
            streams = Gradients(KeepActivations.Streams),
            all = Gradients(KeepActivations.All);
        Assert.That(all, Is.EqualTo(streams));
        Assert.That(streams, Is.Not.EqualTo(inverted));
        foreach ((float[] a, float[] b) in inverted.Zip(streams))
        {
            double size = Math.Sqrt(a.Sum(x => (double)x * x));
            Assert.That(
                Math.Sqrt(a.Zip(b, (x, y) => Math.Pow((double)x - y, 2)).Sum()), Is.LessThanOrEqualTo(1e-4 * size));
        }
    }

    [Test]
    public void Trace_WithKeptActivations_ShowsTheSame()
    {
        TokenBatch batch = ModelTests.RandomBatch(2, 40, 31, 5);
        ModelTrace Trace(IReadOnlyList<KeepActivations>? keep)
        {
            using ReformerModel model = ReformerModel.Create(Config, _context, 1);
            return model.Trace(batch, new RunOptions { Seed = 3, Keep = keep }, backward: true);
        }

        ModelTrace expected = Trace(null);
        ModelTrace found = Trace([
            KeepActivations.All,
            KeepActivations.All,
            KeepActivations.Streams,
            KeepActivations.Nothing,
            KeepActivations.Streams,
            KeepActivations.All,
        ]);
        Assert.Multiple(() =>
        {
            foreach ((LayerTrace a, LayerTrace b) in expected.Layers.Zip(found.Layers))
            {
                Assert.That(b.AttentionResult, Is.EqualTo(a.AttentionResult));
                Assert.That(b.Stream2, Is.EqualTo(a.Stream2));
                Assert.That(b.Buckets, Is.EqualTo(a.Buckets));
            }

            Assert.That(found.Loss, Is.EqualTo(expected.Loss));
            Assert.That(found.Reconstruction, Is.EqualTo(new Reconstruction(true, 0)));
            Assert.That(
                () => Trace([KeepActivations.All]),
                Throws.ArgumentException.With.Message.Contains("6 layers, found 1"));
        });
    }

    [Test]
    public void SteadyState_WithKeptActivations_AllocatesNothing()
    {
        using ReformerModel model = ReformerModel.Create(Config, _context, 1);
        using var trainer = new Trainer(model, Task, Options with { Steps = 1000, MemoryBudget = 1L << 40 });
        for (int i = 0; i < 3; i++)
        {
            trainer.RunStep();
        }

        trainer.EvaluateHeldOut();
        long live = NativeRuntime.LiveObjects;
        long before = GC.GetAllocatedBytesForCurrentThread();
        const int steps = 10;
        for (int i = 0; i < steps; i++)
        {
            trainer.RunStep();
        }

        Assert.That((GC.GetAllocatedBytesForCurrentThread() - before) / steps, Is.LessThan(1024), "bytes a step");
        Assert.That(NativeRuntime.LiveObjects, Is.EqualTo(live), "the same buffers");
    }

    /// <summary>The device has as much less afterwards as the plan says.</summary>
    [Test]
    public void Plan_WithABudget_IsWhatTheDeviceGives([Values] ResidualMode residual)
    {
        using ReformerContext cuda = CudaOnHost.Open();
        ReformerConfig config = Config with { Residual = residual };
        TrainingOptions options = Options with { Steps = 1, AccumulationSteps = 1 };
        foreach (long budget in Budgets(config, cuda, options).OfType<long>())
        {
            long before = cuda.MemoryInfo.FreeBytes;
            TrainingOptions run = options with { MemoryBudget = budget };
            MemoryPlan plan = MemoryPlan.ForTraining(config, cuda, run);
            using ReformerModel model = ReformerModel.Create(config, cuda, 1);
            using var trainer = new Trainer(model, Task, run);
            trainer.RunStep();
            Assert.That(plan.TotalBytes, Is.LessThanOrEqualTo(budget));
            Assert.That(
                before - cuda.MemoryInfo.FreeBytes, Is.EqualTo(plan.TotalBytes).Within(1024),
                "two floats of the clipping are not in it");
        }
    }

    /// <summary>Nothing, something in the middle with all three levels or two, everything.</summary>
    private static IEnumerable<long?> Budgets(ReformerConfig config, ReformerContext context, TrainingOptions options)
    {
        long least = MemoryPlan.ForTraining(config, context, options).TotalBytes;
        long streams = MemoryPlan.ForTraining(config, context, options, KeepActivations.Streams).TotalBytes;
        long all = MemoryPlan.ForTraining(config, context, options, KeepActivations.All).TotalBytes;
        return [null, (least + streams) / 2, (streams + all) / 2, all];
    }

    /// <summary>Losses and parameters of a run, in all their digits.</summary>
    private static string Train(ReformerConfig config, ReformerContext context, TrainingOptions options)
    {
        using ReformerModel model = ReformerModel.Create(config, context, 1);
        using var trainer = new Trainer(model, Task, options);
        var text = new System.Text.StringBuilder();
        TrainingResult result = trainer.Run(new Observer(step => text.AppendLine(FormattableString.Invariant(
            $"{step.Loss.LossSum:R} {step.GradientNorm:R} {step.HeldOut?.LossSum:R}"))));
        Assert.That(result.Completed, Is.True);
        using var hash = System.Security.Cryptography.IncrementalHash.CreateHash(
            System.Security.Cryptography.HashAlgorithmName.SHA256);
        foreach (Parameter parameter in model.Parameters)
        {
            hash.AppendData(
                System.Runtime.InteropServices.MemoryMarshal.AsBytes<float>(parameter.Value.ToArray<float>()));
        }

        return text.AppendLine(Convert.ToHexString(hash.GetHashAndReset())).ToString();
    }

    private sealed class Observer(Action<TrainingStep> report) : IProgress<TrainingStep>
    {
        public void Report(TrainingStep value) => report(value);
    }
}
