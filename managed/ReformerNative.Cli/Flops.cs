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
        ReformerConfig config, int length, long batch, IReadOnlyList<KeepActivations>? kept = null)
    {
        double tokens = (double)length * batch;
        double e = config.HiddenSize;
        double inner = (double)config.NumAttentionHeads * config.AttentionHeadSize;
        double sum = 3 * 2 * tokens * config.FinalWidth * config.VocabSize;
        var forms = new LayerForms(
            LayerForms.WithBuckets(config, length), length, config.NumHashes, fullAttention: false);
        for (int layer = 0; layer < forms.Count; layer++)
        {
            KeepActivations keep = kept?[layer] ?? default;
            // Queries and keys are one for LSH.
            int projections = config.AttnLayers[layer] is AttentionKind.Lsh or AttentionKind.Auto ? 2 : 3;
            double first = 2 * tokens * e * ((projections * inner) + config.FeedForwardSize);
            double second = 2 * tokens * e * (inner + config.FeedForwardSize);
            AttentionOptions options = forms.Attention(layer, dropout: false, masked: false);
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
}
