using ReformerNative.Checkpoints;
using ReformerNative.Ops;

namespace ReformerNative.Model;

/// <summary>
/// Everything that fixes a model's mathematics. Names, meanings and defaults are those of Hugging Face's Reformer
/// configuration (a <c>config.json</c> of theirs loads, and saves with all its keys); the properties after
/// <see cref="VocabSize"/> are additions that such a file need not have. Immutable: change it with a <c>with</c>
/// expression.
/// </summary>
public sealed record ReformerConfig
{
    /// <summary>D, width of an attention head (<c>attention_head_size</c>).</summary>
    public int AttentionHeadSize { get; init; } = 64;

    /// <summary>
    /// Kind of attention of each layer, first to last (<c>attn_layers</c>: lsh, local; and full and auto, additions).
    /// Auto is full attention with the shared and normalised keys of LSH below the crossover length
    /// (<see cref="AttentionCost"/>) and LSH from it on; its parameters are those of LSH, so lengths may change between
    /// training, evaluation and generation.
    /// </summary>
    public IReadOnlyList<AttentionKind> AttnLayers { get; init; } =
    [
        AttentionKind.Local, AttentionKind.Lsh, AttentionKind.Local,
        AttentionKind.Lsh, AttentionKind.Local, AttentionKind.Lsh,
    ];

    /// <summary>Standard deviation that axial position tables start with (<c>axial_norm_std</c>).</summary>
    public double AxialNormStd { get; init; } = 1.0;

    /// <summary>
    /// Kind of position embedding (<c>axial_pos_embds</c>: true axial, false learned; none is an addition).
    /// </summary>
    public PositionEncoding Positions { get; init; } = PositionEncoding.Axial;

    /// <summary>
    /// Axial tables: number of rows s_i of each; their product limits the length (<c>axial_pos_shape</c>).
    /// </summary>
    public IReadOnlyList<int> AxialPosShape { get; init; } = [64, 64];

    /// <summary>Axial tables: width e_i of each; their sum is the hidden size (<c>axial_pos_embds_dim</c>).</summary>
    public IReadOnlyList<int> AxialPosEmbdsDim { get; init; } = [64, 192];

    /// <summary>
    /// Rows that the feed-forward handles at a time, 0 = automatic; changes no result (<c>chunk_size_feed_forward</c>).
    /// </summary>
    public int ChunkSizeFeedForward { get; init; }

    /// <summary>
    /// Rows of logits that exist at a time, 0 = automatic; changes no result (<c>chunk_size_lm_head</c>).
    /// </summary>
    public int ChunkSizeLmHead { get; init; }

    /// <summary>
    /// Dropout inside the classification head; kept, but the head applies none (<c>classifier_dropout</c>).
    /// </summary>
    public double? ClassifierDropout { get; init; }

    /// <summary>Id that ends a text (<c>eos_token_id</c>).</summary>
    public int? EosTokenId { get; init; } = 2;

    /// <summary>F, width of the feed-forward (<c>feed_forward_size</c>).</summary>
    public int FeedForwardSize { get; init; } = 512;

    /// <summary>
    /// When set, the rotations come from this seed and are the same at every step (<c>hash_seed</c>).
    /// </summary>
    public int? HashSeed { get; init; }

    /// <summary>
    /// Activation of the feed-forward: relu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, silu, swish
    /// (<c>hidden_act</c>).
    /// </summary>
    public string HiddenAct { get; init; } = "relu";

    /// <summary>
    /// Dropout of embeddings, attention outputs, feed-forward and final norm, 0 &lt;= p &lt; 1
    /// (<c>hidden_dropout_prob</c>).
    /// </summary>
    public double HiddenDropoutProb { get; init; } = 0.05;

    /// <summary>E, width of each residual stream (<c>hidden_size</c>).</summary>
    public int HiddenSize { get; init; } = 256;

    /// <summary>Standard deviation that linear weights and embeddings start with (<c>initializer_range</c>).</summary>
    public double InitializerRange { get; init; } = 0.02;

    /// <summary>Whether attention is causal (<c>is_decoder</c>).</summary>
    public bool IsDecoder { get; init; }

    /// <summary>Added to the variance in layer norms (<c>layer_norm_eps</c>).</summary>
    public double LayerNormEps { get; init; } = 1e-12;

    /// <summary>Local layers: chunks ahead of its own that a query sees (<c>local_num_chunks_before</c>).</summary>
    public int LocalNumChunksBefore { get; init; } = 1;

    /// <summary>
    /// Local layers: chunks after its own that a query sees; 0 for a decoder (<c>local_num_chunks_after</c>).
    /// </summary>
    public int LocalNumChunksAfter { get; init; }

    /// <summary>
    /// Local and full layers: dropout of the attention probabilities (<c>local_attention_probs_dropout_prob</c>).
    /// </summary>
    public double LocalAttentionProbsDropoutProb { get; init; } = 0.05;

    /// <summary>Local layers: chunk length C (<c>local_attn_chunk_length</c>).</summary>
    public int LocalAttnChunkLength { get; init; } = 64;

    /// <summary>LSH layers: chunk length C of the sorted order (<c>lsh_attn_chunk_length</c>).</summary>
    public int LshAttnChunkLength { get; init; } = 64;

    /// <summary>LSH layers: dropout of the attention probabilities (<c>lsh_attention_probs_dropout_prob</c>).</summary>
    public double LshAttentionProbsDropoutProb { get; init; }

    /// <summary>LSH layers: chunks ahead of its own that a query sees (<c>lsh_num_chunks_before</c>).</summary>
    public int LshNumChunksBefore { get; init; } = 1;

    /// <summary>
    /// LSH layers: chunks after its own that a query sees; 0 for a decoder (<c>lsh_num_chunks_after</c>).
    /// </summary>
    public int LshNumChunksAfter { get; init; }

    /// <summary>
    /// Rows of a learned position table, and a measure of the automatic bucket rule (<c>max_position_embeddings</c>).
    /// </summary>
    public int MaxPositionEmbeddings { get; init; } = 4096;

    /// <summary>H, attention heads (<c>num_attention_heads</c>).</summary>
    public int NumAttentionHeads { get; init; } = 12;

    /// <summary>
    /// Even factors whose product is the number of hash buckets, the first the least significant digit; null lets the
    /// model choose at its first use and then keep the choice (<c>num_buckets</c>: null, an integer or a list).
    /// </summary>
    public IReadOnlyList<int>? NumBuckets { get; init; }

    /// <summary>R, hash rounds (<c>num_hashes</c>).</summary>
    public int NumHashes { get; init; } = 1;

    /// <summary>
    /// Classes of a sequence classifier (<c>num_labels</c>, or the number of entries of <c>id2label</c>).
    /// </summary>
    public int NumLabels { get; init; } = 2;

    /// <summary>Id that stands for padding (<c>pad_token_id</c>).</summary>
    public int? PadTokenId { get; init; } = 0;

    /// <summary>What the head computes (<c>architectures</c>).</summary>
    public ReformerTask Task { get; init; }

    /// <summary>Whether the model's outputs at a token say what the next one is: only such a one learns from plain text
    /// and continues it.</summary>
    public bool PredictsNextToken => HeadKind.Of(Task).PredictsNextToken;

    /// <summary>
    /// Whether input and output embeddings are one tensor; must be false, their widths differ
    /// (<c>tie_word_embeddings</c>).
    /// </summary>
    public bool TieWordEmbeddings { get; init; }

    /// <summary>V, number of ids (<c>vocab_size</c>).</summary>
    public int VocabSize { get; init; } = 320;

    /// <summary>
    /// How residual streams are added (<c>residual</c>: exact or float). Exact rounds each sub-layer's output to a grid
    /// so that the backward pass recovers the same bits; float is plain addition, and stores hashes. A file without the
    /// key means float.
    /// </summary>
    public ResidualMode Residual { get; init; } = ResidualMode.Exact;

    /// <summary>
    /// Exact residual: streams are multiples of 2^this, and stay exact up to 2^(24 + this)
    /// (<c>residual_grid_exponent</c>, -24 .. -4).
    /// </summary>
    public int ResidualGridExponent { get; init; } = -16;

    /// <summary>How the two streams become one at the end (<c>final_combine</c>: concatenate or mean).</summary>
    public StreamCombination FinalCombine { get; init; } = StreamCombination.Concatenate;

    /// <summary>
    /// Part of the training target that is spread over all ids, 0 &lt;= s &lt; 1 (<c>label_smoothing</c>).
    /// </summary>
    public double LabelSmoothing { get; init; }

    /// <summary>
    /// Named form of LSH attention (<c>lsh_preset</c>: hf, trax, paper, lucidrains, strict). A file without the key
    /// means hf.
    /// </summary>
    /// <remarks>
    /// Chunks before and after come from <see cref="LshNumChunksBefore"/> and <see cref="LshNumChunksAfter"/>.
    /// </remarks>
    public AttentionPreset LshPreset { get; init; } = AttentionPreset.HuggingFace;

    /// <summary>Overrides the preset's window (<c>lsh_window</c>: slots, same_bucket, strict).</summary>
    public AttentionWindow? LshWindow { get; init; }

    /// <summary>Overrides the preset's duplicate correction (<c>lsh_duplicates</c>: none, log_count).</summary>
    public DuplicateCorrection? LshDuplicates { get; init; }

    /// <summary>Overrides the preset's key norm (<c>lsh_key_norm</c>: none, rms, l2).</summary>
    public KeyNorm? LshKeyNorm { get; init; }

    /// <summary>Factor of the LSH scores; null or 0 is 1/sqrt(head size) (<c>lsh_logit_scale</c>).</summary>
    public double? LshLogitScale { get; init; }

    /// <summary>Overrides whether the sorted order wraps around (<c>lsh_wrap</c>).</summary>
    public bool? LshWrap { get; init; }

    /// <summary>Overrides whether a chunk that a window holds twice counts twice (<c>lsh_repeat_chunks</c>).</summary>
    public bool? LshRepeatChunks { get; init; }

    /// <summary>Overrides what shares a rotation (<c>lsh_rotation_scope</c>: layer, head, example).</summary>
    public RotationScope? LshRotationScope { get; init; }

    /// <summary>
    /// Whether the first chunk of a local layer sees the last one; true as in the published models (<c>local_wrap</c>).
    /// </summary>
    public bool LocalWrap { get; init; } = true;

    /// <summary>
    /// The JSON object that this was read from, and what it said; null for a configuration made in code.
    /// </summary>
    internal ConfigOrigin? Origin { get; init; }

    /// <summary>The LSH form that results from the preset and the overrides.</summary>
    public AttentionPreset Lsh => LshPreset with
    {
        Window = LshWindow ?? LshPreset.Window,
        Duplicates = LshDuplicates ?? LshPreset.Duplicates,
        KeyNorm = LshKeyNorm ?? LshPreset.KeyNorm,
        Wrap = LshWrap ?? LshPreset.Wrap,
        RepeatChunks = LshRepeatChunks ?? LshPreset.RepeatChunks,
        Rotations = LshRotationScope ?? LshPreset.Rotations,
        ChunksBefore = LshNumChunksBefore,
        ChunksAfter = LshNumChunksAfter,
    };

    /// <summary>The longest sequence that the position embedding allows; null when nothing limits it.</summary>
    public long? PositionLimit => Positions switch
    {
        PositionEncoding.Axial => Product(AxialPosShape),
        PositionEncoding.Learned => MaxPositionEmbeddings,
        _ => null,
    };

    /// <summary>Width of what the head sees: twice the hidden size when the streams are concatenated.</summary>
    public int FinalWidth => FinalCombine == StreamCombination.Concatenate ? 2 * HiddenSize : HiddenSize;

    /// <summary>Reads a configuration file and validates it.</summary>
    /// <param name="path">A <c>config.json</c>.</param>
    /// <returns>The configuration; it keeps keys that it does not know and writes them back.</returns>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="ReformerFormatException">It is not valid; the message lists every problem.</exception>
    public static ReformerConfig Load(string path) => ConfigFile.Load(path);

    /// <summary>Parses a configuration and validates it.</summary>
    /// <param name="json">The text of a <c>config.json</c>.</param>
    /// <param name="name">What error messages call it.</param>
    /// <returns>The configuration; it keeps keys that it does not know and writes them back.</returns>
    /// <exception cref="ReformerFormatException">It is not valid; the message lists every problem.</exception>
    public static ReformerConfig Parse(string json, string name = CheckpointFiles.Config) =>
        ConfigFile.Parse(json, name);

    /// <summary>
    /// The configuration as the text of a <c>config.json</c>. What was read and not changed is written as it was.
    /// </summary>
    /// <returns>An indented JSON object.</returns>
    public string ToJson() => ConfigFile.Write(this);

    /// <summary>Writes the configuration; the file is replaced in one step.</summary>
    /// <param name="path">The file.</param>
    public void Save(string path) => AtomicFile.WriteText(path, ToJson());

    /// <summary>Checks every rule.</summary>
    /// <exception cref="ReformerConfigException">Some do not hold; it lists them all.</exception>
    public void Validate()
    {
        IReadOnlyList<string> problems = ConfigRules.Check(this);
        if (problems.Count > 0)
        {
            throw new ReformerConfigException(problems);
        }
    }

    // Every pass asks for it, and an enumerator would be an allocation.
    private static long Product(IReadOnlyList<int> sizes)
    {
        long product = 1;
        for (int i = 0; i < sizes.Count; i++)
        {
            product *= sizes[i];
        }

        return product;
    }
}
