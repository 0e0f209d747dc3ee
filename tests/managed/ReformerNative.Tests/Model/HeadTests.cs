using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Tests.Model;

/// <summary>What each head makes of the labels of a batch, and what else depends on the head.</summary>
public sealed class HeadTests
{
    private const int Labels = 5; // of the classifier

    private ReformerContext _context = null!;

    private static ReformerConfig Config(ReformerTask task) => ModelTests.Small with
    {
        Task = task,
        IsDecoder = task == ReformerTask.CausalLanguageModel,
        LshPreset = task == ReformerTask.CausalLanguageModel ? AttentionPreset.Strict : AttentionPreset.Trax,
        NumLabels = Labels,
        HiddenDropoutProb = 0.1,
    };

    private static int Outputs(ReformerTask task) => task == ReformerTask.SequenceClassification ? Labels : 31;

    [OneTimeSetUp]
    public void Open() => _context = new ReformerContext();

    [OneTimeTearDown]
    public void Close() => _context.Dispose();

    [Test]
    public void Kinds_AreOneForEachTask_WithAnArchitectureThatTheConfigurationKeeps([Values] ReformerTask task)
    {
        Assert.That(HeadKind.All.Select(kind => kind.Task), Is.EquivalentTo(Enum.GetValues<ReformerTask>()));
        Assert.That(HeadKind.All.Select(kind => kind.Architecture), Is.Unique);
        ReformerConfig config = Config(task);
        Assert.That(config.ToJson(), Does.Contain(HeadKind.Of(task).Architecture));
        Assert.That(ReformerConfig.Parse(config.ToJson()).Task, Is.EqualTo(task));
    }

    /// <summary>
    /// The loss against one computed here from the outputs of the head, with labels that differ from the ids, some of
    /// which take no part.
    /// </summary>
    [Test]
    public void Loss_IsTheCrossEntropyOfTheOutputsThatTheLabelsAreFor([Values] ReformerTask task)
    {
        const int examples = 3;
        const int length = 21;
        int outputs = Outputs(task);
        using ReformerModel model = ReformerModel.Create(Config(task), _context, 3);
        TokenBatch batch = ModelTests.RandomBatch(examples, length, 31, 7);
        var random = new Random(5);
        for (int i = 0; i < batch.TokenCount; i++)
        {
            batch.Labels[i] = i % length == 0 || i % 4 != 3 ? random.Next(outputs) : TokenBatch.IgnoredLabel;
        }

        if (task != ReformerTask.SequenceClassification)
        {
            batch.Labels[length] = TokenBatch.IgnoredLabel;
        }

        ModelTrace trace = model.Trace(batch);
        double sum = 0;
        int count = 0;
        int correct = 0;
        for (int b = 0; b < examples; b++)
        {
            int rows = task == ReformerTask.SequenceClassification ? 1 : length;
            int offset = task == ReformerTask.CausalLanguageModel ? 1 : 0;
            for (int t = 0; t + offset < rows; t++)
            {
                int label = batch.Labels[(b * length) + t + offset];
                if (label == TokenBatch.IgnoredLabel)
                {
                    continue;
                }

                double[] logits =
                    [.. trace.Logits.Skip(((b * rows) + t) * outputs).Take(outputs).Select(x => (double)x)];
                sum += Math.Log(logits.Sum(Math.Exp)) - logits[label];
                count++;
                correct += Array.IndexOf(logits, logits.Max()) == label ? 1 : 0;
            }
        }

        Assert.Multiple(() =>
        {
            Assert.That(trace.LogitsShape, Is.EqualTo(task == ReformerTask.SequenceClassification
                ? (long[])[examples, outputs]
                : [examples, length, outputs]));
            Assert.That(trace.Logits, Has.Length.EqualTo(trace.LogitsShape.Aggregate(1L, (n, size) => n * size)));
            foreach (LossResult loss in (LossResult[])
                [trace.Loss!.Value, model.Evaluate(batch), model.ForwardBackward(batch, default)])
            {
                Assert.That(loss.LossSum, Is.EqualTo(sum).Within(1e-4).Percent);
                Assert.That((loss.Count, loss.Correct), Is.EqualTo(((long)count, (long)correct)));
            }
        });
    }

    [Test]
    public void Label_ThatIsNoOutputOfTheHead_IsRefused([Values] ReformerTask task, [Values(-1, 0, 100)] int beyond)
    {
        using ReformerModel model = ReformerModel.Create(Config(task), _context, 3);
        TokenBatch batch = ModelTests.RandomBatch(2, 20, 31, 7);
        batch.Labels.Clear();
        batch.Labels[20] = batch.Labels[21] = beyond < 0 ? beyond : Outputs(task) + beyond;
        Assert.That(
            () => model.Evaluate(batch),
            Throws.ArgumentException.With.Message.Contains(
                $"labels: expected 0 .. {Outputs(task) - 1} or -100, found {batch.Labels[20]}"));
        batch.Labels.Fill(TokenBatch.IgnoredLabel);
        Assert.That(() => model.Evaluate(batch), Throws.ArgumentException.With.Message.Contains("at least one"));
        Assert.That(model.Trace(batch).Loss, Is.Null);
    }

    [Test]
    public void Classifier_ReadsTheFirstTokenAlone()
    {
        using ReformerModel model = ReformerModel.Create(
            Config(ReformerTask.SequenceClassification) with { AttnLayers = [AttentionKind.Local], LocalWrap = false },
            _context, 3);
        TokenBatch batch = ModelTests.RandomBatch(2, 60, 31, 7);
        batch.Labels.Fill(2);
        LossResult loss = model.Evaluate(batch);
        batch.Labels[1..60].Fill(4);
        batch.Ids[30] = (batch.Ids[30] + 1) % 31; // further away than two windows
        Assert.That(model.Evaluate(batch), Is.EqualTo(loss));
        batch.Labels[60] = 4;
        Assert.That(model.Evaluate(batch), Is.Not.EqualTo(loss));
    }

    [Test]
    public void OutputsForTheNextToken_AreThoseOfTheLastOne_OrRefused([Values] ReformerTask task)
    {
        using ReformerModel model = ReformerModel.Create(Config(task), _context, 3);
        TokenBatch batch = ModelTests.RandomBatch(3, 20, 31, 7);
        var next = new float[3 * 31];
        if (task == ReformerTask.SequenceClassification)
        {
            Assert.That(
                () => model.NextTokenLogits(batch, next),
                Throws.TypeOf<NotSupportedException>().With.Message.EqualTo(
                    "expected a language model, found a sequence classifier"));
            return;
        }

        float[] all = model.Trace(batch).Logits;
        model.NextTokenLogits(batch, next);
        for (int b = 0; b < 3; b++)
        {
            Assert.That(
                next.AsSpan(b * 31, 31).ToArray(),
                Is.EqualTo(all.AsSpan(((b * 20) + 19) * 31, 31).ToArray()).Within(1e-5), $"example {b}");
        }
    }

    [Test]
    public void Generator_TakesAModelThatPredictsTheNextToken_AndNamesAnyOther([Values] ReformerTask task)
    {
        using ReformerModel model = ReformerModel.Create(Config(task), _context, 3);
        if (task == ReformerTask.CausalLanguageModel)
        {
            using var generator = new Generator(model);
            Assert.That(generator.Generate([1], new GenerationOptions { Count = 3 }).Count(), Is.EqualTo(3));
            return;
        }

        Assert.That(
            () => new Generator(model),
            Throws.TypeOf<NotSupportedException>().With.Message.EqualTo(
                "expected a causal language model, found a "
                + (task == ReformerTask.MaskedLanguageModel ? "masked language model" : "sequence classifier")));
    }

    [Test]
    public void SavedModel_OfEachHead_HasItsNamesAndLoadsWithTheSameBits([Values] ReformerTask task)
    {
        using var directory = new TemporaryDirectory();
        using ReformerModel model = ReformerModel.Create(Config(task), _context, 3);
        TokenBatch batch = ModelTests.RandomBatch(2, 20, 5, 7);
        LossResult loss = model.Evaluate(batch);
        model.Save(directory.Path);
        using (SafetensorsReader file = SafetensorsReader.Open(directory.File("model.safetensors")))
        {
            string[] names =
            [
                .. file.Entries.Select(entry => entry.Name).Where(
                    name => name.StartsWith("lm_head", StringComparison.Ordinal)
                        || name.StartsWith("classifier", StringComparison.Ordinal)),
            ];
            Assert.That(names, Is.EquivalentTo(task == ReformerTask.SequenceClassification
                ? (string[])
                [
                    "classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight",
                    "classifier.out_proj.bias",
                ]
                : ["lm_head.bias", "lm_head.decoder.weight", "lm_head.decoder.bias"]));
        }

        using ReformerModel loaded = ReformerModel.Load(directory.Path, _context);
        Assert.That(loaded.Evaluate(batch), Is.EqualTo(loss));
    }

    /// <summary>The plan goes through the code of the run, whichever head that has.</summary>
    [Test]
    public void Plan_NamesTheScratchThatARunTakes([Values] ReformerTask task)
    {
        ReformerConfig config = Config(task);
        MemoryPlan plan = MemoryPlan.ForTraining(
            config, _context, new TrainingOptions { BatchSize = 2, Length = 40, Steps = 1 }, KeepActivations.Nothing);
        using ReformerModel model = ReformerModel.Create(config, _context, 3);
        model.ForwardBackward(ModelTests.RandomBatch(2, 40, 5, 7), new RunOptions { Dropout = true });
        Assert.That(
            model.Workspace.Bytes,
            Is.Positive.And.LessThanOrEqualTo(plan.Entries.Single(entry => entry.Name == "workspace").Bytes));
        Assert.That(plan.Entries.Select(entry => entry.Name), Has.Member("head").And.Member("stream gradients"));
    }

    /// <summary>
    /// Buffers that serve both: gradients of a pass are those of the same pass in a new model, whatever ran before.
    /// </summary>
    [Test]
    public void Gradients_AfterAnEvaluationInTheSameBuffers_AreTheSame([Values] ReformerTask task)
    {
        using ReformerModel fresh = ReformerModel.Create(Config(task), _context, 3);
        using ReformerModel used = ReformerModel.Create(Config(task), _context, 3);
        TokenBatch batch = ModelTests.RandomBatch(2, 40, 5, 7);
        var options = new RunOptions { Seed = 4, Dropout = true };
        LossResult expected = fresh.ForwardBackward(batch, options);
        used.ForwardBackward(ModelTests.RandomBatch(2, 40, 5, 8), options);
        used.Evaluate(batch);
        used.ZeroGradients();
        Assert.That(used.ForwardBackward(batch, options), Is.EqualTo(expected));
        Assert.That(used.MeasureReconstruction(), Is.EqualTo(new Reconstruction(true, 0)));
        foreach ((Parameter a, Parameter b) in used.Parameters.Zip(fresh.Parameters))
        {
            Assert.That(a.Gradient.ToArray<float>(), Is.EqualTo(b.Gradient.ToArray<float>()), a.Name);
        }
    }
}
