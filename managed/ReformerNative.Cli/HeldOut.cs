using ReformerNative.Data;
using ReformerNative.Model;

namespace ReformerNative.Cli;

/// <summary>Attention of an evaluation: so many hash rounds, or the whole sequence.</summary>
/// <param name="Rounds">Hash rounds; null for full attention.</param>
internal readonly record struct EvaluationMode(int? Rounds)
{
    /// <summary>Options of the measurement; the same seed has the batches and rotations of the trainer's own.</summary>
    public RunOptions Options(ulong seed) => new() { Seed = seed, Rounds = Rounds, FullAttention = Rounds is null };

    public string Name => Rounds is int rounds ? Output.Text($"{rounds}") : "full";

    public static EvaluationMode Parse(string text) =>
        text == "full" ? default
        : CommonOptions.TryParse(text, 1, out int rounds)
            ? new EvaluationMode(rounds)
        : throw new UsageException($"--rounds: expected full or an integer from 1 up, found '{text}'");
}

/// <summary>What is held out of the data of a run.</summary>
internal static class HeldOut
{
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
