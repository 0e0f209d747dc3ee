using ReformerNative.Model;
using ReformerNative.Ops;

namespace ReformerNative.Cli;

/// <summary>
/// Floating point operations of the mathematics alone, a multiplication and an addition being two: scores, weighted sums and dense
/// products. Hashing, sorting, masks, softmax, norms and the optimizer take time but are not counted.
/// </summary>
internal static class Flops
{
    /// <summary>Two products of D for a pair of query and key: its score and its share of the output.</summary>
    private const double ForwardOfPair = 4;

    /// <summary>Five: the score again, dP, dV, dQ and dK.</summary>
    private const double BackwardOfPair = 10;

    /// <summary>Pairs of query and key that one head of one example looks at.</summary>
    public static double Pairs(AttentionOptions options, long length) => options.Kind switch
    {
        AttentionKind.Full => options.Causal ? 0.5 * length * (length + 1) : (double)length * length,
        AttentionKind.Local => (double)length * Window(options),
        _ => (double)options.Rounds * length * Window(options),
    };

    public static double AttentionForward(AttentionOptions options, long length, long batch, long heads, long headSize) =>
        ForwardOfPair * batch * heads * headSize * Pairs(options, length);

    public static double AttentionBackward(AttentionOptions options, long length, long batch, long heads, long headSize) =>
        BackwardOfPair * batch * heads * headSize * Pairs(options, length);

    /// <summary>A training step: forward, recomputation of each block, backward; the head is computed once and differentiated.</summary>
    public static double Step(ReformerConfig config, long length, long batch)
    {
        double tokens = (double)length * batch;
        double e = config.HiddenSize;
        double inner = (double)config.NumAttentionHeads * config.AttentionHeadSize;
        double sum = 3 * 2 * tokens * config.FinalWidth * config.VocabSize;
        foreach (AttentionKind kind in config.AttnLayers)
        {
            double projections = kind == AttentionKind.Lsh ? 3 : 4; // queries and keys are one for LSH
            sum += 4 * 2 * tokens * ((projections * e * inner) + (2 * e * config.FeedForwardSize));
            AttentionOptions options = Options(config, kind);
            sum += 2 * AttentionForward(options, length, batch, config.NumAttentionHeads, config.AttentionHeadSize);
            sum += AttentionBackward(options, length, batch, config.NumAttentionHeads, config.AttentionHeadSize);
        }

        return sum;
    }

    private static AttentionOptions Options(ReformerConfig config, AttentionKind kind) => kind switch
    {
        AttentionKind.Lsh => AttentionOptions.Lsh(config.Lsh, config.IsDecoder, config.LshAttnChunkLength, config.NumHashes, default),
        AttentionKind.Local => AttentionOptions.Local(
            config.IsDecoder, config.LocalAttnChunkLength, config.LocalNumChunksBefore, config.LocalNumChunksAfter, config.LocalWrap),
        _ => AttentionOptions.Full(config.IsDecoder),
    };

    /// <summary>Slots that a query sees in one round.</summary>
    private static double Window(AttentionOptions options) => options.Kind == AttentionKind.Lsh && options.Window == AttentionWindow.Strict
        ? (double)options.ChunksBefore * options.ChunkLength
        : (options.ChunksBefore + 1.0 + options.ChunksAfter) * options.ChunkLength;
}
