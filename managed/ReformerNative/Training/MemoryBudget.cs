using ReformerNative.Model;

namespace ReformerNative.Training;

/// <summary>Decides what layers keep within a number of bytes.</summary>
internal static class MemoryBudget
{
    /// <summary>
    /// Spends what a run leaves over that keeps nothing: on the streams first, which spare more work for a byte than
    /// the rest, then on all activations, of cheap layers (those that hash have no keys of their own, and spare the
    /// most work) before others.
    /// </summary>
    /// <param name="budget">Bytes in all.</param>
    /// <param name="least">Bytes of a run that keeps nothing.</param>
    /// <param name="layers">Number of layers.</param>
    /// <param name="keptBytes">Bytes that a layer takes at a level.</param>
    /// <returns>What each layer keeps.</returns>
    /// <exception cref="ArgumentException">The budget is less than the least.</exception>
    public static KeepActivations[] Spend(
        long budget, long least, int layers, Func<int, KeepActivations, long> keptBytes)
    {
        if (budget < least)
        {
            throw new ArgumentException(
                $"memory budget: expected at least the {least} bytes of a run that keeps nothing, found {budget}");
        }

        var kept = new KeepActivations[layers];
        long left = budget - least;
        foreach (KeepActivations level in (KeepActivations[])[KeepActivations.Streams, KeepActivations.All])
        {
            foreach (int layer in Enumerable.Range(0, layers).OrderBy(layer => keptBytes(layer, level)))
            {
                long more = keptBytes(layer, level) - keptBytes(layer, kept[layer]);
                if (more <= left)
                {
                    kept[layer] = level;
                    left -= more;
                }
            }
        }

        return kept;
    }
}
