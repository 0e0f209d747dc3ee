using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Tests.Training;

/// <summary>What fails beside the steps of a run costs none of the steps done.</summary>
public sealed class TrainerFailureTests
{
    private static readonly DuplicationTask Task = new(31);

    private static readonly TrainingOptions Options = TrainerTests.Options with { AccumulationSteps = 1 };

    private ReformerContext _context = null!;
    private ReformerModel _model = null!;
    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void Open()
    {
        _directory = new TemporaryDirectory();
        _context = new ReformerContext(threads: 1);
        _model = ReformerModel.Create(TrainerTests.Config with { Residual = ResidualMode.Float }, _context, 1);
    }

    [TearDown]
    public void Close()
    {
        _model.Dispose();
        _context.Dispose();
        _directory.Dispose();
    }

    [Test]
    public void ListenerThatFails_CostsNoStep()
    {
        using var trainer = new Trainer(_model, Task, Options with { CheckpointDirectory = _directory.Path });
        Assert.That(
            () => trainer.Run(new Listener(step => Fail(step.Step == 3))), Throws.TypeOf<IOException>());
        AssertSaved(trainer, 3);
    }

    /// <summary>A run that ends at a step which is saved already saves nothing again.</summary>
    [Test]
    public void StepThatIsSaved_IsNotSavedAgain([Values] bool fails)
    {
        TrainingOptions options = Options with { CheckpointDirectory = _directory.Path, CheckpointEvery = 1 };
        using var cancellation = new CancellationTokenSource();
        using var trainer = new Trainer(_model, Task, options with { KeepCheckpoints = 0 });
        var listener = new Listener(step =>
        {
            if (step.Step == 3)
            {
                cancellation.Cancel();
                Fail(fails);
            }
        });
        if (fails)
        {
            Assert.That(() => trainer.Run(listener, cancellation.Token), Throws.TypeOf<IOException>());
        }
        else
        {
            Assert.That(trainer.Run(listener, cancellation.Token).Checkpoint, Is.EqualTo(trainer.LastCheckpoint));
        }

        Assert.That(
            Directory.EnumerateDirectories(_directory.Path, "step-*").Select(path => Path.GetFileName(path)),
            Is.EquivalentTo(new[] { "step-00000001", "step-00000002", "step-00000003" }));
        AssertSaved(trainer, 3);
    }

    [Test]
    public void DataThatFails_CostsNoStep()
    {
        var data = new Source((split, index) => Fail(split == DataSplit.Train && index == 4));
        using var trainer = new Trainer(_model, data, Options with { CheckpointDirectory = _directory.Path });
        Assert.That(() => trainer.Run(), Throws.TypeOf<IOException>());
        AssertSaved(trainer, 4);
    }

    [Test]
    public void MeasurementThatFails_CostsNoStep([Values] bool last)
    {
        var data = new Source((split, index) => Fail(split == DataSplit.HeldOut && index == 1));
        using var trainer = new Trainer(
            _model, data,
            Options with { CheckpointDirectory = _directory.Path, EvaluateEvery = 2, Steps = last ? 2 : 9 });
        Assert.That(() => trainer.Run(), Throws.TypeOf<IOException>());
        AssertSaved(trainer, 2);
    }

    [Test]
    public void DataForMeasurements_IsAskedForBeforeTheFirstStep()
    {
        var data = new Source((split, index) => Fail(split == DataSplit.HeldOut));
        TrainingOptions options = Options with { CheckpointDirectory = _directory.File("run") };
        Assert.That(() => new Trainer(_model, data, options), Throws.TypeOf<IOException>());
        Assert.That(Directory.Exists(_directory.File("run")), Is.False);
        Assert.That(
            () => new Trainer(_model, data, options with { EvaluateEvery = 0 }).Dispose(), Throws.Nothing,
            "without measurements nothing is held out");
    }

    [Test]
    public void Cancellation_DuringAMeasurement_EndsItAndSaves()
    {
        using var cancellation = new CancellationTokenSource();
        var data = new Source((split, index) =>
        {
            if (split == DataSplit.HeldOut && index == 1)
            {
                cancellation.Cancel();
            }

            Assert.That(index, Is.LessThan(5), "cancelled long ago");
        });
        using var trainer = new Trainer(
            _model, data,
            Options with { CheckpointDirectory = _directory.Path, EvaluateEvery = 2, EvaluationBatches = 1000 });
        var seen = new List<TrainingStep>();
        TrainingResult result = trainer.Run(new Listener(seen.Add), cancellation.Token);
        Assert.Multiple(() =>
        {
            Assert.That(result.Completed, Is.False);
            Assert.That(result.HeldOut, Is.Null);
            Assert.That(seen.Select(step => step.HeldOut), Is.All.Null);
            Assert.That(seen, Has.Count.EqualTo(2));
        });
        AssertSaved(trainer, 2);
        Assert.That(
            () => trainer.EvaluateHeldOut(cancellation: cancellation.Token),
            Throws.InstanceOf<OperationCanceledException>());
    }

    [TestCase(0)]
    [TestCase(2)]
    public void ParametersThatAreNotFinite_AreNotSaved(int element)
    {
        using var trainer = new Trainer(
            _model, Task, Options with { CheckpointDirectory = _directory.Path, KeepCheckpoints = 1 });
        trainer.RunStep();
        string saved = trainer.SaveCheckpoint(_directory.Path);
        float[] values = _model.Parameters[^1].Value.ToArray<float>();
        values[element] = float.NaN;
        _model.Parameters[^1].Value.CopyFrom<float>(values);
        Assert.That(() => _model.Save(_directory.File("model")), Throws.TypeOf<NotFiniteNumberException>());
        Assert.That(Directory.EnumerateFiles(_directory.File("model")), Is.Empty);
        Assert.That(
            () => trainer.SaveCheckpoint(_directory.Path),
            Throws.TypeOf<TrainingDivergedException>()
                .With.Message.StartsWith("step 1: '").And.Message.Contains($"found NaN at element {element}"));
        Assert.That(CheckpointStore.List(_directory.Path).Select(item => item.Path), Is.EqualTo(new[] { saved }));
        Assert.That(trainer.LastCheckpoint, Is.EqualTo(saved));
    }

    [Test]
    public void Directory_OfAnotherTrainer_IsRefusedUntilItIsDisposed()
    {
        TrainingOptions options = Options with { CheckpointDirectory = _directory.Path };
        using (var trainer = new Trainer(_model, Task, options))
        {
            Assert.That(
                () => new Trainer(_model, Task, options),
                Throws.TypeOf<IOException>().With.Message.Contains($"in use by process {Environment.ProcessId} on"));
            Assert.That(
                () => CheckpointStore.Add(_directory.Path, 1, 1, _ => { }),
                Throws.TypeOf<IOException>().With.Message.Contains("in use"));
        }

        Assert.That(() => new Trainer(_model, Task, options).Dispose(), Throws.Nothing);
    }

    private static void Fail(bool now)
    {
        if (now)
        {
            throw new IOException("a failure of a test");
        }
    }

    private void AssertSaved(Trainer trainer, long step)
    {
        Assert.That(trainer.Step, Is.EqualTo(step));
        Assert.That(CheckpointStore.List(_directory.Path)[^1].Step, Is.EqualTo(step));
        Assert.That(trainer.LastCheckpoint, Is.EqualTo(CheckpointStore.Resolve(_directory.Path)));
        using ReformerModel model = ReformerModel.Load(trainer.LastCheckpoint!, _context);
        using Trainer resumed = Trainer.Resume(model, trainer.LastCheckpoint!, Task);
        Assert.That(resumed.Step, Is.EqualTo(step));
    }

    private sealed class Listener(Action<TrainingStep> report) : IProgress<TrainingStep>
    {
        public void Report(TrainingStep value) => report(value);
    }

    private sealed class Source(Action<DataSplit, long> before) : IBatchSource
    {
        public string Identity => Task.Identity;

        public int VocabularySize => Task.VocabularySize;

        public void Fill(TokenBatch batch, DataSplit split, ulong seed, long index)
        {
            before(split, index);
            Task.Fill(batch, split, seed, index);
        }
    }
}
