using ReformerNative.Ops;

namespace ReformerNative.Model;

/// <summary>The rules of a valid configuration, one place for each.</summary>
internal static class ConfigRules
{
    public static readonly IReadOnlyDictionary<string, Activation> Activations = new Dictionary<string, Activation>(
        StringComparer.Ordinal)
    {
        ["relu"] = Activation.Relu,
        ["gelu"] = Activation.GeluErf,
        ["gelu_new"] = Activation.GeluTanh,
        ["gelu_fast"] = Activation.GeluTanh,
        ["gelu_pytorch_tanh"] = Activation.GeluTanh,
        ["silu"] = Activation.Silu,
        ["swish"] = Activation.Silu,
    };

    // Widths and chunk lengths up to this, and counts up to that, have products of their bytes below 2^63.
    private const int LargestSize = 1 << 24;
    private const int LargestCount = 1 << 16;

    /// <summary>Kinds of layers that read the keys of LSH.</summary>
    public static readonly AttentionKind[] LshKinds = [AttentionKind.Lsh, AttentionKind.Auto];

    /// <summary>Kinds of layers that read the keys of local attention.</summary>
    public static readonly AttentionKind[] LocalKinds = [AttentionKind.Local];

    /// <summary>Kinds of layers that read the attention dropout of local attention.</summary>
    public static readonly AttentionKind[] LocalDropoutKinds = [AttentionKind.Local, AttentionKind.Full];

    public static IReadOnlyList<string> Check(ReformerConfig c)
    {
        var problems = new List<string>();
        void Rule(bool holds, string key, string expected, object? found)
        {
            if (!holds)
            {
                problems.Add(FormattableString.Invariant($"{key}: expected {expected}, found {found ?? "null"}"));
            }
        }

        void AtLeast(string key, long found, long least, long most = int.MaxValue)
        {
            Rule(found >= least, key, $"an integer from {least} up", found);
            Rule(found <= most, key, $"an integer up to {most}", found);
        }

        void Probability(string key, double found) => Rule(found >= 0 && found < 1, key, "0 <= p < 1", found);
        void Finite(string key, double found) =>
            Rule(double.IsFinite(found) && found >= 0, key, "a finite number from 0 up", found);

        AtLeast("vocab_size", c.VocabSize, 1);
        AtLeast("hidden_size", c.HiddenSize, 1, LargestSize);
        AtLeast("num_attention_heads", c.NumAttentionHeads, 1, LargestSize);
        AtLeast("attention_head_size", c.AttentionHeadSize, 1, LargestSize);
        AtLeast("feed_forward_size", c.FeedForwardSize, 1, LargestSize);
        AtLeast("num_hashes", c.NumHashes, 1, LargestCount);
        AtLeast("lsh_attn_chunk_length", c.LshAttnChunkLength, 1, LargestSize);
        AtLeast("local_attn_chunk_length", c.LocalAttnChunkLength, 1, LargestSize);
        AtLeast("lsh_num_chunks_before", c.LshNumChunksBefore, 0, LargestCount);
        AtLeast("lsh_num_chunks_after", c.LshNumChunksAfter, 0, LargestCount);
        AtLeast("local_num_chunks_before", c.LocalNumChunksBefore, 0, LargestCount);
        AtLeast("local_num_chunks_after", c.LocalNumChunksAfter, 0, LargestCount);
        AtLeast("max_position_embeddings", c.MaxPositionEmbeddings, 1);
        AtLeast("chunk_size_feed_forward", c.ChunkSizeFeedForward, 0);
        AtLeast("chunk_size_lm_head", c.ChunkSizeLmHead, 0);
        AtLeast("num_labels", c.NumLabels, 1);
        Rule(
            c.Task != ReformerTask.SequenceClassification || c.NumLabels != 1, "num_labels",
            "2 or more (one label is a regression, which is no loss here)", c.NumLabels);
        Probability("hidden_dropout_prob", c.HiddenDropoutProb);
        Probability("lsh_attention_probs_dropout_prob", c.LshAttentionProbsDropoutProb);
        Probability("local_attention_probs_dropout_prob", c.LocalAttentionProbsDropoutProb);
        Probability("classifier_dropout", c.ClassifierDropout ?? 0);
        Probability("label_smoothing", c.LabelSmoothing);
        Finite("axial_norm_std", c.AxialNormStd);
        Finite("initializer_range", c.InitializerRange);
        Finite("lsh_logit_scale", c.LshLogitScale ?? 0);
        Rule(
            double.IsFinite(c.LayerNormEps) && c.LayerNormEps > 0, "layer_norm_eps", "a finite number above 0",
            c.LayerNormEps);
        Rule(
            Activations.ContainsKey(c.HiddenAct), "hidden_act", $"one of {string.Join(", ", Activations.Keys)}",
            c.HiddenAct);
        Rule(!c.TieWordEmbeddings, "tie_word_embeddings", "false (the output layer is wider than the embedding)", true);
        Rule(
            c.ResidualGridExponent is >= -24 and <= -4, "residual_grid_exponent", "an integer of -24 .. -4",
            c.ResidualGridExponent);
        Rule(c.AttnLayers.Count > 0, "attn_layers", "at least one layer", "none");
        CheckBuckets(c, Rule);
        CheckPositions(c, Rule);
        CheckDirection(c, Rule);
        return problems;
    }

    private static void CheckBuckets(ReformerConfig c, Action<bool, string, string, object?> rule)
    {
        if (c.NumBuckets is not { } factors)
        {
            return;
        }

        string found = $"[{string.Join(", ", factors)}]";
        rule(
            factors.Count is >= 1 and <= 8 && factors.All(factor => factor >= 2 && factor % 2 == 0), "num_buckets",
            "null, an even number from 2 up, or 1 to 8 of them", found);
        rule(
            factors.Aggregate(1.0, (product, factor) => product * factor) < int.MaxValue, "num_buckets",
            "a product below 2^31", found);
    }

    private static void CheckPositions(ReformerConfig c, Action<bool, string, string, object?> rule)
    {
        if (c.Positions != PositionEncoding.Axial)
        {
            return;
        }

        string shape = $"[{string.Join(", ", c.AxialPosShape)}]";
        string widths = $"[{string.Join(", ", c.AxialPosEmbdsDim)}]";
        rule(
            c.AxialPosShape.Count is >= 1 and <= 4 && c.AxialPosShape.All(n => n >= 1), "axial_pos_shape",
            "1 to 4 integers from 1 up", shape);
        rule(
            c.AxialPosShape.Aggregate(1.0, (product, rows) => product * rows) < long.MaxValue, "axial_pos_shape",
            "a product below 2^63", shape);
        rule(
            c.AxialPosEmbdsDim.Count == c.AxialPosShape.Count && c.AxialPosEmbdsDim.All(n => n >= 1),
            "axial_pos_embds_dim", $"as many integers from 1 up as axial_pos_shape has ({c.AxialPosShape.Count})",
            widths);
        rule(
            c.AxialPosEmbdsDim.Sum(n => (long)n) == c.HiddenSize, "axial_pos_embds_dim",
            $"a sum of hidden_size ({c.HiddenSize})", widths);
    }

    private static void CheckDirection(ReformerConfig c, Action<bool, string, string, object?> rule)
    {
        bool lsh = c.AttnLayers.Any(kind => kind is AttentionKind.Lsh or AttentionKind.Auto);
        bool local = c.AttnLayers.Contains(AttentionKind.Local);
        if (c.IsDecoder)
        {
            rule(
                !lsh || c.LshNumChunksAfter == 0, "lsh_num_chunks_after", "0, because is_decoder is true",
                c.LshNumChunksAfter);
            rule(
                !local || c.LocalNumChunksAfter == 0, "local_num_chunks_after", "0, because is_decoder is true",
                c.LocalNumChunksAfter);
        }

        if (lsh && c.Lsh.Window == AttentionWindow.Strict)
        {
            rule(c.IsDecoder, "is_decoder", "true, because the LSH window is strict", c.IsDecoder);
            rule(!c.Lsh.Wrap, "lsh_wrap", "false, because the LSH window is strict", c.Lsh.Wrap);
        }

        var head = HeadKind.Of(c.Task);
        rule(
            head.IsDecoder is not { } needed || c.IsDecoder == needed, "is_decoder",
            $"{(head.IsDecoder == true ? "true" : "false")} for a {head.Name}", c.IsDecoder);
    }
}
