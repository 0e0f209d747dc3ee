using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Tests.Model;
using ReformerNative.Training;

namespace ReformerNative.Tests.Training;

public sealed class MemoryPlanTests
{
    [Test]
    public void Plan_OfATrainingRun_NamesTheScratchThatTheRunTakes(
        [Values] OptimizerKind optimizer, [Values] ResidualMode residual, [Values(24, 61)] int length)
    {
        using var context = new ReformerContext(threads: 2);
        ReformerConfig config = ModelTests.Small with { Residual = residual, VocabSize = 128, HiddenDropoutProb = 0.1 };
        TrainingOptions options = new() { BatchSize = 3, Length = length, Optimizer = optimizer, Steps = 1 };
        MemoryPlan plan = MemoryPlan.ForTraining(config, context, options);
        using ReformerModel model = ReformerModel.Create(config, context, 1);
        using var trainer = new Trainer(model, new Tokens(), options);
        trainer.RunStep();
        Dictionary<string, long> bytes = plan.Entries.ToDictionary(entry => entry.Name, entry => entry.Bytes);
        long stream = 3L * length * 24 * sizeof(float);
        Assert.Multiple(() =>
        {
            Assert.That(bytes["workspace"], Is.EqualTo(model.Workspace.Bytes));
            Assert.That(bytes["streams"], Is.EqualTo(2 * stream));
            Assert.That(bytes["stream gradients"], Is.EqualTo(2 * stream));
            Assert.That(bytes["parameters"], Is.GreaterThanOrEqualTo(model.ParameterCount * sizeof(float)));
            Assert.That(bytes["gradients"], Is.EqualTo(bytes["parameters"]));
            Assert.That(
                bytes["optimizer"],
                optimizer == OptimizerKind.AdamW
                    ? Is.EqualTo(2 * model.ParameterCount * sizeof(float))
                    : Is.LessThan(model.ParameterCount * sizeof(float) / 4)
            );
            Assert.That(
                bytes.ContainsKey("hashes"), Is.EqualTo(residual == ResidualMode.Float),
                "exact residuals store no hashes");
            Assert.That(plan.TotalBytes, Is.EqualTo(plan.Entries.Sum(entry => entry.Bytes)));
            Assert.That(plan.ToString(), Does.Contain("workspace").And.Contain("total"));
        });
    }

    [Test]
    public void Plan_OfAMillionTokens_AllocatesNothingNative_AndGrowsNotWithDepth()
    {
        using var context = new ReformerContext(threads: 2);
        long live = NativeRuntime.LiveObjects;
        ReformerConfig config = ReformerPresets.Text with
        {
            AxialPosShape = [1024, 1024],
            MaxPositionEmbeddings = 1 << 20,
        };
        TrainingOptions options = new() { Length = 1 << 20 };
        MemoryPlan two = MemoryPlan.ForTraining(
            config with
            {
                AttnLayers = [AttentionKind.Local, AttentionKind.Lsh],
            },
            context,
            options
        );
        MemoryPlan twelve = MemoryPlan.ForTraining(
            config with
            {
                AttnLayers =
                [
                    .. Enumerable.Range(0, 12).Select(i => i % 2 == 0 ? AttentionKind.Local : AttentionKind.Lsh),
                ],
            },
            context,
            options
        );
        string[] state = ["parameters", "gradients", "optimizer"];
        long Activations(MemoryPlan plan) =>
            plan.Entries.Where(entry => !state.Contains(entry.Name)).Sum(entry => entry.Bytes);
        Assert.Multiple(() =>
        {
            Assert.That(NativeRuntime.LiveObjects, Is.EqualTo(live));
            Assert.That(Activations(twelve), Is.EqualTo(Activations(two)));
            Assert.That(two.TotalBytes, Is.GreaterThan(4L << 30), "four streams of 1 GiB");
        });
    }

    [Test]
    public void Plan_OfEvaluation_HasNoGradients()
    {
        using var context = new ReformerContext(threads: 2);
        MemoryPlan plan = MemoryPlan.ForEvaluation(ReformerPresets.Text, context, 1, 4096, rounds: 8);
        Assert.That(
            plan.Entries.Select(entry => entry.Name),
            Does.Not.Contain("gradients").And.Not.Contain("stream gradients"));
    }

    private sealed class Tokens : ReformerNative.Data.IBatchSource
    {
        public string Identity => "tokens";

        public int VocabularySize => 128;

        public void Fill(
            ReformerNative.Data.TokenBatch batch, ReformerNative.Data.DataSplit split, ulong seed, long index)
        {
            batch.Ids.Fill(5);
            batch.Labels.Fill(7);
        }
    }
}
