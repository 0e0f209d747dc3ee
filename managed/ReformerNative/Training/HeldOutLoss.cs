using ReformerNative.Data;
using ReformerNative.Model;

namespace ReformerNative.Training;

/// <summary>The loss of a model on held-out data.</summary>
public static class HeldOutLoss
{
    /// <summary>Measures the loss on the first held-out batches, which are the same ones for the same seed.</summary>
    /// <param name="model">The model.</param>
    /// <param name="source">The data.</param>
    /// <param name="batch">Takes each batch; its shape is that of the measurement.</param>
    /// <param name="batches">Number of batches, 1 or more.</param>
    /// <param name="options">Seed of the batches and the rotations, rounds, full attention. Steps count the
    /// batches.</param>
    /// <param name="cancellation">Ends it after the batch in progress.</param>
    /// <returns>The loss of all batches together.</returns>
    /// <exception cref="ArgumentException">The data cannot give such batches, or has other ids than the
    /// model.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public static LossResult Measure(
        ReformerModel model, IBatchSource source, TokenBatch batch, int batches, in RunOptions options,
        CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(source);
        ArgumentNullException.ThrowIfNull(batch);
        ArgumentOutOfRangeException.ThrowIfLessThan(batches, 1);
        LossResult sum = default;
        for (int i = 0; i < batches; i++)
        {
            cancellation.ThrowIfCancellationRequested();
            source.Fill(batch, DataSplit.HeldOut, options.Seed, i);
            sum = sum.Add(model.Evaluate(batch, options with { Step = (ulong)i }));
        }

        return sum;
    }
}
