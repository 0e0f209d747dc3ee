using ReformerNative.Model;
using ReformerNative.Ops;

namespace ReformerNative.Cli;

/// <summary>
/// Floating point operations of the mathematics alone, a multiplication and an addition being two: scores, weighted
/// sums and dense products. Hashing, sorting, masks, softmax, norms and the optimizer take time but are not counted.
/// </summary>
internal static class Flops
{
    /// <summary>Two products of D for a pair of query and key: its score and its share of the output.</summary>
    private const double ForwardOfPair = 4;

    /// <summary>Five: the score again, dP, dV, dQ and dK.</summary>
    private const double BackwardOfPair = 10;

    public static double AttentionForward(
        AttentionOptions options, long length, long batch, long heads,
        long headSize) => ForwardOfPair * batch * heads * headSize * AttentionCost.Pairs(options, length);

    public static double AttentionBackward(
        AttentionOptions options, long length, long batch, long heads,
        long headSize) => BackwardOfPair * batch * heads * headSize * AttentionCost.Pairs(options, length);

    /// <summary>
    /// A training step as it is done: forward, what backward computes again of each layer, backward; the head is
    /// computed once and differentiated. Without <paramref name="kept"/>, layers keep nothing.
    /// </summary>
    public static double Step(
        ReformerConfig config, long length, long batch, IReadOnlyList<KeepActivations>? kept = null)
    {
        double tokens = (double)length * batch;
        double e = config.HiddenSize;
        double inner = (double)config.NumAttentionHeads * config.AttentionHeadSize;
        double sum = 3 * 2 * tokens * config.FinalWidth * config.VocabSize;
        foreach (
            (AttentionKind kind, KeepActivations keep) in config.AttnLayers.Zip(
                kept ?? new KeepActivations[config.AttnLayers.Count])
        )
        {
            // Queries and keys are one for LSH.
            int projections = kind is AttentionKind.Lsh or AttentionKind.Auto ? 2 : 3;
            double first = 2 * tokens * e * ((projections * inner) + config.FeedForwardSize);
            double second = 2 * tokens * e * (inner + config.FeedForwardSize);
            AttentionOptions options = Options(config, AttentionCost.Resolve(config, kind, length));
            double attention = AttentionForward(
                options, length, batch, config.NumAttentionHeads, config.AttentionHeadSize);
            sum += 3 * (first + second);
            sum +=
                attention
                + AttentionBackward(options, length, batch, config.NumAttentionHeads, config.AttentionHeadSize);
            sum += keep == KeepActivations.All ? 0 : first + attention + (keep == KeepActivations.Streams ? 0 : second);
        }

        return sum;
    }

    private static AttentionOptions Options(ReformerConfig config, AttentionKind kind) =>
        kind switch
        {
            AttentionKind.Lsh => AttentionOptions.Lsh(
                config.Lsh, config.IsDecoder, config.LshAttnChunkLength, config.NumHashes, default),
            AttentionKind.Local => AttentionOptions.Local(
                config.IsDecoder, config.LocalAttnChunkLength, config.LocalNumChunksBefore, config.LocalNumChunksAfter,
                config.LocalWrap),
            _ => AttentionOptions.Full(config.IsDecoder),
        };
}
