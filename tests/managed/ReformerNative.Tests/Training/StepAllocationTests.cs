using ReformerNative.Cli;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Tests.Model;
using ReformerNative.Training;

namespace ReformerNative.Tests.Training;

/// <summary>In a steady state a step allocates nothing on the managed heap: not one byte.</summary>
public sealed class StepAllocationTests
{
    private const int Steps = 20;

    private static readonly ReformerConfig Config = ModelTests.Small with
    {
        AttnLayers = [AttentionKind.Local, AttentionKind.Lsh, AttentionKind.Full, AttentionKind.Auto],
        VocabSize = ByteVocabulary.Size,
        HiddenDropoutProb = 0.1,
        LshAttentionProbsDropoutProb = 0.1,
        LocalAttentionProbsDropoutProb = 0.1,
    };

    [Test]
    public void TrainingStep_AllocatesNothing(
        [Values] OptimizerKind optimizer, [Values] ResidualMode residual, [Values(1, 3)] int batches,
        [Values("text", "random", "duplication")] string data)
    {
        using var directory = new TemporaryDirectory();
        using TextFiles? text = data == "text" ? Text(directory) : null;
        IBatchSource source =
            text ?? (data == "random" ? new RandomTokens(ByteVocabulary.Size) : (IBatchSource)new DuplicationTask());
        using var context = new ReformerContext(threads: 2);
        using ReformerModel model = ReformerModel.Create(Config with { Residual = residual }, context, 1);
        using var trainer = new Trainer(
            model,
            source,
            new TrainingOptions
            {
                Steps = 1000,
                BatchSize = 2,
                Length = 52,
                AccumulationSteps = batches,
                Optimizer = optimizer,
                WeightDecay = 0.01,
                MaxGradientNorm = 0.5,
            }
        );
        Allocations.AssertNone(Steps, () => trainer.RunStep());
    }

    [Test]
    public void EvaluationBatch_AllocatesNothing([Values] bool masked)
    {
        using var context = new ReformerContext(threads: 2);
        using ReformerModel model = ReformerModel.Create(Config, context, 1);
        TokenBatch batch = ModelTests.RandomBatch(2, 61, ByteVocabulary.Size, 5);
        batch.Mask.Fill(1);
        batch.Mask[60] = 0;
        batch.HasMask = masked;
        Allocations.AssertNone(Steps, () => model.Evaluate(batch, new RunOptions { Seed = 3 }));
    }

    private static TextFiles Text(TemporaryDirectory directory)
    {
        foreach (int file in Enumerable.Range(0, 40))
        {
            File.WriteAllText(directory.File($"{file}.txt"), string.Concat(Enumerable.Repeat($"file {file} ", 10)));
        }

        return TextFiles.Open([directory.Path]); // 52 ids usually span two files
    }
}
