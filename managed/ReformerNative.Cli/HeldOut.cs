using ReformerNative.Data;
using ReformerNative.Model;

namespace ReformerNative.Cli;

/// <summary>Attention of an evaluation: so many hash rounds, or the whole sequence.</summary>
/// <param name="Rounds">Hash rounds; null for full attention.</param>
internal readonly record struct EvaluationMode(int? Rounds)
{
    public string Name => Rounds is int rounds ? Output.Text($"{rounds}") : "full";

    public static EvaluationMode Parse(string text) =>
        text == "full" ? default
        : CommonOptions.TryParse(text, 1, out int rounds)
            ? new EvaluationMode(rounds)
        : throw new UsageException($"--rounds: expected full or an integer from 1 up, found '{text}'");
}

/// <summary>
/// Loss on held-out data, as the trainer measures it: the same batches and rotations for the same seed.
/// </summary>
internal static class HeldOut
{
    public static LossResult Measure(
        ReformerModel model, IBatchSource source, int batchSize, int length, int batches, ulong seed,
        EvaluationMode mode, CancellationToken cancellation)
    {
        var batch = new TokenBatch(batchSize, length);
        LossResult sum = default;
        for (int i = 0; i < batches; i++)
        {
            cancellation.ThrowIfCancellationRequested();
            source.Fill(batch, DataSplit.HeldOut, seed, i);
            sum = sum.Add(
                model.Evaluate(
                    batch,
                    new RunOptions
                    {
                        Seed = seed,
                        Step = (ulong)i,
                        Rounds = mode.Rounds,
                        FullAttention = mode.Rounds is null,
                    }
                )
            );
        }

        return sum;
    }

    /// <summary>What a run will read must be there before its first step, and that includes what is held out.</summary>
    public static void RequireBatches(IBatchSource source, RunDescription run)
    {
        var batch = new TokenBatch(run.Options.BatchSize, run.Options.Length);
        source.Fill(batch, DataSplit.Train, run.Options.Seed, 0);
        if (!run.Data.HasHeldOut)
        {
            return;
        }

        try
        {
            source.Fill(batch, DataSplit.HeldOut, run.Options.Seed, 0);
        }
        catch (ArgumentException error) when (run.Data.Task == DataTask.Text)
        {
            throw new InvalidOperationException(
                $"{Failure.Describe(error).Message}; "
                    + Output.Text($"give more text, hold out more of it (--held-out, here {run.Data.HeldOut}, ")
                    + "0 for no measurement) or take a smaller --length",
                error);
        }
    }
}
