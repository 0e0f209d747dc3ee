using System.Runtime.CompilerServices;
using ReformerNative.Ops;

namespace ReformerNative.Model;

/// <summary>
/// What attention costs, from its shapes alone, and so the form of layers of kind <see cref="AttentionKind.Auto"/>:
/// dense below the crossover length, LSH from it on. Nothing is timed while a model runs, so a checkpoint means the
/// same on every machine.
/// </summary>
public static class AttentionCost
{
    /// <summary>No crossover is looked for beyond this length.</summary>
    private const long LongestLength = 1 << 24;

    /// <summary>Crossovers that were found: every pass of a model with auto layers asks for it several times, and where
    /// there is none the search goes through all lengths.</summary>
    private static readonly ConditionalWeakTable<ReformerConfig, StrongBox<long?>> Known = [];

    /// <summary>Pairs of query and key that one head of one example looks at; chunks count whole.</summary>
    /// <param name="options">What attends to what.</param>
    /// <param name="length">T, tokens of an example.</param>
    /// <returns>T² or T(T+1)/2 (dense), T times the window (local), and that times the rounds (LSH).</returns>
    public static double Pairs(AttentionOptions options, long length) => options.Geometry(length).Pairs;

    /// <summary>
    /// The cost of one head's forward pass over one example, in multiply-adds of a dense product for each channel of
    /// the head: scores and weighted sums, and of LSH the products with the random rotations. Projections are the same
    /// in every form; sorting, masks and softmax are not counted: what LSH attention loses to gathering its rows it
    /// gains about as much by leaving out what a causal mask hides of its chunks.
    /// </summary>
    /// <param name="options">What attends to what.</param>
    /// <param name="length">T, tokens of an example.</param>
    /// <returns>The cost.</returns>
    public static double Forward(AttentionOptions options, long length) => options.Geometry(length).MultiplyAdds;

    /// <summary>
    /// The length from which a configuration's LSH attention costs no more than dense attention: the first such
    /// multiple of two chunks (some rules for buckets take no odd number of chunks). Buckets count as its rule chooses
    /// them for each length, even if it names their number, so that the crossover stays where it is when a model
    /// chooses them.
    /// </summary>
    /// <param name="config">The configuration; its kinds of layers do not matter.</param>
    /// <returns>The length; null when LSH costs more at every length up to 2^24, or cannot be: a strict window needs
    /// tokens that see the past alone.</returns>
    public static long? Crossover(ReformerConfig config)
    {
        ArgumentNullException.ThrowIfNull(config);
        ArgumentOutOfRangeException.ThrowIfLessThan(config.LshAttnChunkLength, 1, nameof(config));
        return Known.GetValue(config, static config => new StrongBox<long?>(FindCrossover(config))).Value;
    }

    /// <summary>
    /// The form that a layer takes at a length: of <see cref="AttentionKind.Auto"/> one of the others, which stay as
    /// they are.
    /// </summary>
    /// <param name="config">The configuration.</param>
    /// <param name="kind">The layer's kind.</param>
    /// <param name="length">T, tokens of an example.</param>
    /// <returns>Lsh, Local or Full. A layer that was Auto has the parameters of Lsh in either form.</returns>
    public static AttentionKind Resolve(ReformerConfig config, AttentionKind kind, long length) =>
        kind != AttentionKind.Auto ? kind
        : length >= (Crossover(config) ?? long.MaxValue) ? AttentionKind.Lsh
        : AttentionKind.Full;

    private static long? FindCrossover(ReformerConfig config)
    {
        AttentionPreset preset = config.Lsh;
        if (preset.Window == AttentionWindow.Strict && !config.IsDecoder)
        {
            return null;
        }

        AttentionOptions dense = AttentionOptions.Full(config.IsDecoder);
        long chunk = config.LshAttnChunkLength;
        for (long length = 2 * chunk; length <= LongestLength; length += 2 * chunk)
        {
            BucketFactors factors = BucketFactors.Automatic(
                preset.Buckets, length, chunk, config.MaxPositionEmbeddings);
            AttentionOptions lsh = AttentionOptions.Lsh(preset, config.IsDecoder, chunk, config.NumHashes, factors);
            if (Forward(lsh, length) <= Forward(dense, length))
            {
                return length;
            }
        }

        return null;
    }
}
