using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Tests.Model;
using ReformerNative.Tests.Training;
using ReformerNative.Training;

namespace ReformerNative.Tests.Cuda;

/// <summary>Whole training steps on the CUDA backend.</summary>
public sealed class CudaTrainingTests
{
    private static readonly TrainingOptions Options = new()
    {
        Seed = 11,
        Steps = 3,
        BatchSize = 2,
        Length = 36,
        LearningRate = 3e-3,
        WarmupSteps = 0,
        Schedule = LearningRateSchedule.Constant,
        WeightDecay = 0.01,
        KeepCheckpoints = 0,
    };

    private static readonly DuplicationTask Task = new(31);

    private static IEnumerable<TestCaseData> Models()
    {
        foreach (ResidualMode residual in Enum.GetValues<ResidualMode>())
        {
            ReformerConfig decoder = TrainerTests.Config with { Residual = residual };
            yield return new TestCaseData(decoder, OptimizerKind.AdamW).SetArgDisplayNames(
                "decoder", $"{residual}", "AdamW");
            yield return new TestCaseData(Encoder(decoder), OptimizerKind.Adafactor).SetArgDisplayNames(
                "encoder", $"{residual}", "Adafactor");
        }
    }

    private static ReformerConfig Encoder(ReformerConfig decoder) =>
        decoder with { IsDecoder = false, Task = ReformerTask.MaskedLanguageModel, LshPreset = AttentionPreset.Trax };

    /// <summary>
    /// The two backends compute the same function with other orders of summation, so that they differ by float32
    /// rounding. A rounding that crosses a point of the residual grid (2^-16) moves a stream by that much.
    /// </summary>
    [TestCaseSource(nameof(Models))]
    public void ThreeSteps_OnCudaAndOnTheCpu_EndAlike(ReformerConfig config, OptimizerKind optimizer)
    {
        using ReformerContext cuda = CudaOnHost.Open();
        using var cpu = new ReformerContext(threads: 1);
        TrainingOptions options = Options with { Optimizer = optimizer };
        using ReformerModel expected = ReformerModel.Create(config, cpu, 1);
        using ReformerModel found = ReformerModel.Create(config, cuda, 1);
        float[][] start = Values(expected);
        using var expectedTrainer = new Trainer(expected, Task, options);
        using var foundTrainer = new Trainer(found, Task, options);
        for (int step = 0; step < options.Steps; step++)
        {
            TrainingStep a = expectedTrainer.RunStep();
            TrainingStep b = foundTrainer.RunStep();
            TestContext.Out.WriteLine(FormattableString.Invariant(
                $"step {step + 1}: loss {a.Loss.Loss} {b.Loss.Loss}, gradient norm {a.GradientNorm} {b.GradientNorm}"));
            Assert.That(b.Loss.Loss, Is.EqualTo(a.Loss.Loss).Within(2e-6 * a.Loss.Loss), $"loss of step {step + 1}");
            Assert.That(
                b.GradientNorm, Is.EqualTo(a.GradientNorm).Within(2e-5 * a.GradientNorm),
                $"gradient norm of step {step + 1}");
            Assert.That(b.Loss.Count, Is.EqualTo(a.Loss.Count));
        }

        float[][] end = Values(expected);
        float[][] other = Values(found);
        double worst = 0;
        for (int i = 0; i < start.Length; i++)
        {
            // How far apart, measured in how far training has moved the parameter.
            double moved = Distance(start[i], end[i]);
            worst = Math.Max(worst, Distance(end[i], other[i]) / moved);
            Assert.That(Distance(end[i], other[i]), Is.LessThanOrEqualTo(1e-4 * moved), expected.Parameters[i].Name);
        }

        TestContext.Out.WriteLine(
            FormattableString.Invariant($"largest distance of a parameter: {worst:e2} of its way"));
    }

    [Test]
    public void Streams_AreRecoveredToTheBit([Values(1, 250)] int length)
    {
        using ReformerContext cuda = CudaOnHost.Open();
        using ReformerModel model = ReformerModel.Create(TrainerTests.Config, cuda, 1);
        model.ForwardBackward(
            ModelTests.RandomBatch(2, Math.Max(2, length), 31, 5), new RunOptions { Seed = 3, Dropout = true });
        Assert.That(model.MeasureReconstruction(), Is.EqualTo(new Reconstruction(true, 0)));
    }

    [Test]
    public void Run_StoppedAndResumed_EndsWithTheSameBytes([Values] OptimizerKind optimizer)
    {
        using ReformerContext cuda = CudaOnHost.Open();
        using var whole = new TemporaryDirectory();
        using var parts = new TemporaryDirectory();
        TrainingOptions options = Options with
        {
            Optimizer = optimizer,
            AccumulationSteps = 2,
            CheckpointDirectory = whole.Path,
        };
        string last = Train(options);
        Train(options with { Steps = 1, CheckpointDirectory = parts.Path });
        string first = CheckpointStore.Resolve(parts.Path);
        using ReformerModel model = ReformerModel.Load(first, cuda);
        using Trainer trainer = Trainer.Resume(model, first, Task, options with { CheckpointDirectory = parts.Path });
        TrainerTests.AssertSameFiles(last, trainer.Run().Checkpoint!);

        string Train(TrainingOptions run)
        {
            using ReformerModel fresh = ReformerModel.Create(TrainerTests.Config, cuda, 1);
            using var training = new Trainer(fresh, Task, run);
            return training.Run().Checkpoint!;
        }
    }

    [Test]
    public void Checkpoint_OfTheGpu_EvaluatesAlikeOnTheCpu()
    {
        using ReformerContext cuda = CudaOnHost.Open();
        using var cpu = new ReformerContext(threads: 1);
        using var directory = new TemporaryDirectory();
        using ReformerModel model = ReformerModel.Create(TrainerTests.Config, cuda, 1);
        model.Save(directory.Path);
        using ReformerModel loaded = ReformerModel.Load(directory.Path, cpu);
        foreach ((Parameter a, Parameter b) in model.Parameters.Zip(loaded.Parameters))
        {
            Assert.That(b.Value.ToArray<float>(), Is.EqualTo(a.Value.ToArray<float>()), a.Name);
        }

        TokenBatch batch = ModelTests.RandomBatch(2, 40, 31, 5);
        var options = new RunOptions { Seed = 2, Rounds = 4 };
        Assert.That(model.Evaluate(batch, options).Loss, Is.EqualTo(loaded.Evaluate(batch, options).Loss).Within(1e-5));
    }

    [Test]
    public void Generation_OnCudaAndOnTheCpu_DrawsTheSameTokens()
    {
        using ReformerContext cuda = CudaOnHost.Open();
        using var cpu = new ReformerContext(threads: 1);
        var options = new GenerationOptions { Count = 12, Temperature = 0.9f, TopK = 20, TopP = 0.95f, Seed = 4 };
        Assert.That(Generate(cuda), Is.EqualTo(Generate(cpu)));

        int[] Generate(ReformerContext context)
        {
            using ReformerModel model = ReformerModel.Create(TrainerTests.Config, context, 1);
            using var generator = new Generator(model);
            return [.. generator.Generate([1, 2, 3], options)];
        }
    }

    /// <summary>A GPU cannot throw from its kernels: a row that it refuses comes back as -1.</summary>
    [Test]
    public void Generation_FromNaN_IsRefusedOnBoth([Values] bool onCuda)
    {
        using ReformerContext context = onCuda ? CudaOnHost.Open() : new ReformerContext(threads: 1);
        using ReformerModel model = ReformerModel.Create(
            TrainerTests.Config with
            {
                Residual = ResidualMode.Float,
            },
            context,
            1
        );
        TensorView bias = model.Parameters.Single(parameter => parameter.Name == "lm_head.bias").Value;
        float[] values = bias.ToArray<float>();
        values[2] = float.NaN;
        bias.CopyFrom<float>(values);
        using var generator = new Generator(model);
        Assert.That(
            () => generator.Generate([1, 2, 3], new GenerationOptions { Count = 1 }).ToList(),
            Throws.ArgumentException);
    }

    [Test]
    public void Plan_OfATrainingRun_IsWhatTheDeviceGives(
        [Values] OptimizerKind optimizer, [Values] ResidualMode residual)
    {
        using ReformerContext cuda = CudaOnHost.Open();
        ReformerConfig config = TrainerTests.Config with { Residual = residual };
        TrainingOptions options = Options with { Optimizer = optimizer, Steps = 1 };
        long before = cuda.MemoryInfo.FreeBytes;
        MemoryPlan plan = MemoryPlan.ForTraining(config, cuda, options);
        Assert.That(cuda.MemoryInfo.FreeBytes, Is.EqualTo(before), "a plan allocates nothing");
        using ReformerModel model = ReformerModel.Create(config, cuda, 1);
        using var trainer = new Trainer(model, Task, options);
        trainer.RunStep();
        Assert.That(plan.Entries.Single(entry => entry.Name == "workspace").Bytes, Is.EqualTo(model.Workspace.Bytes));

        // Two floats of the clipping are not in the plan.
        Assert.That(before - cuda.MemoryInfo.FreeBytes, Is.EqualTo(plan.TotalBytes).Within(1024));
    }

    [Test]
    public void Step_InASteadyState_AllocatesNothingOnTheDevice()
    {
        using ReformerContext cuda = CudaOnHost.Open();
        using ReformerModel model = ReformerModel.Create(TrainerTests.Config, cuda, 1);
        using var trainer = new Trainer(model, Task, Options with { Steps = 5 });
        trainer.RunStep();
        long live = NativeRuntime.LiveObjects;
        long free = cuda.MemoryInfo.FreeBytes;
        trainer.RunStep();
        Assert.That(NativeRuntime.LiveObjects, Is.EqualTo(live));
        Assert.That(cuda.MemoryInfo.FreeBytes, Is.EqualTo(free));
    }

    [Test]
    public void StreamOutOfRange_IsReportedWithItsPlace()
    {
        using ReformerContext cuda = CudaOnHost.Open();
        using ReformerModel model = ReformerModel.Create(
            TrainerTests.Config with
            {
                ResidualGridExponent = -24,
            },
            cuda,
            1
        );
        Parameter word = model.Parameters[0];
        float[] values = word.Value.ToArray<float>();
        values[3] = 5; // of token 0; the range is +-1
        word.Value.CopyFrom<float>(values);
        TokenBatch batch = ModelTests.RandomBatch(2, 40, 31, 5);
        batch.Ids[..2].Clear();
        ResidualRangeException error = Assert.Throws<ResidualRangeException>(() => model.Evaluate(batch))!;
        Assert.That((error.Layer, error.Stream), Is.EqualTo((-1, 1)), error.Message);
    }

    private static float[][] Values(ReformerModel model) =>
        [.. model.Parameters.Select(parameter => parameter.Value.ToArray<float>())];

    private static double Distance(float[] a, float[] b) =>
        Math.Sqrt(a.Zip(b, (x, y) => Math.Pow((double)x - y, 2)).Sum());
}
