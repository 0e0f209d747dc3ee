using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Tests.Training;

/// <summary>Training learns. The task is the paper's, at a length that takes a minute.</summary>
[Category("Learning")]
public sealed class LearningTests
{
    [Test]
    public void DuplicationTask_AtLength128_IsLearntIn150Steps()
    {
        using var context = new ReformerContext();
        using ReformerModel model = ReformerModel.Create(ReformerPresets.Duplication, context, 1);
        using var trainer = new Trainer(
            model,
            new DuplicationTask(),
            new TrainingOptions
            {
                Seed = 1,
                Steps = 150,
                BatchSize = 32,
                Length = 128,
                LearningRate = 2e-3,
                WarmupSteps = 40,
                EvaluationBatches = 8,
            }
        );
        TrainingResult result = trainer.Run(new Printer());
        double four = trainer.EvaluateHeldOut(rounds: 4).Accuracy;
        double eight = trainer.EvaluateHeldOut(rounds: 8).Accuracy;
        TestContext.Out.WriteLine(
            $"accuracy with 4 rounds {four:P3}, with 8 {eight:P3}; last loss {result.Last.Loss.Loss:F4}");
        Assert.Multiple(() =>
        {
            Assert.That(four, Is.GreaterThan(0.999));
            Assert.That(eight, Is.GreaterThan(0.999));
        });
    }

    private sealed class Printer : IProgress<TrainingStep>
    {
        public void Report(TrainingStep value)
        {
            if (value.Step % 50 == 0)
            {
                TestContext.Progress.WriteLine(
                    $"step {value.Step}: loss {value.Loss.Loss:F4}, accuracy {value.Loss.Accuracy:P2}, "
                        + $"{value.TokensPerSecond:F0} tokens/s"
                );
            }
        }
    }
}
