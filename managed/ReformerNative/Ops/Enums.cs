using ReformerNative.Interop;

namespace ReformerNative.Ops;

/// <summary>The two directions of an op.</summary>
public enum Pass
{
    /// <summary>Outputs from inputs.</summary>
    Forward = NativeConstants.RFN_PASS_FORWARD,

    /// <summary>Gradients from gradients.</summary>
    Backward = NativeConstants.RFN_PASS_BACKWARD,
}

/// <summary>Functions between linear maps.</summary>
public enum Activation
{
    /// <summary>x.</summary>
    None = NativeConstants.RFN_ACTIVATION_NONE,

    /// <summary>max(0, x).</summary>
    Relu = NativeConstants.RFN_ACTIVATION_RELU,

    /// <summary>x Phi(x), with the normal distribution function itself.</summary>
    GeluErf = NativeConstants.RFN_ACTIVATION_GELU_ERF,

    /// <summary>x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).</summary>
    GeluTanh = NativeConstants.RFN_ACTIVATION_GELU_TANH,

    /// <summary>x sigmoid(x).</summary>
    Silu = NativeConstants.RFN_ACTIVATION_SILU,

    /// <summary>tanh(x).</summary>
    Tanh = NativeConstants.RFN_ACTIVATION_TANH,
}

/// <summary>What is added to word embeddings to tell positions apart.</summary>
public enum PositionEncoding
{
    /// <summary>Nothing.</summary>
    None = NativeConstants.RFN_POSITIONS_NONE,

    /// <summary>One table, a row for each position.</summary>
    Learned = NativeConstants.RFN_POSITIONS_LEARNED,

    /// <summary>One to four tables; a position is a point of a grid and its parts are concatenated.</summary>
    Axial = NativeConstants.RFN_POSITIONS_AXIAL,
}

/// <summary>What attends to what.</summary>
public enum AttentionKind
{
    /// <summary>Tokens of similar hash: shared queries and keys, hashed, sorted and cut into chunks.</summary>
    Lsh = NativeConstants.RFN_ATTENTION_LSH,

    /// <summary>Tokens of the same and of neighbouring chunks of the sequence.</summary>
    Local = NativeConstants.RFN_ATTENTION_LOCAL,

    /// <summary>All tokens.</summary>
    Full = NativeConstants.RFN_ATTENTION_FULL,

    /// <summary>
    /// Of a model's layer, never of an op: all tokens in short sequences, tokens of similar hash in long ones, with the
    /// parameters of the latter and shared keys in both.
    /// </summary>
    Auto = -1,
}

/// <summary>Keys that a query sees in one hash round. A slot is a place in the sorted order.</summary>
public enum AttentionWindow
{
    /// <summary>The slots of its chunk and of the neighbouring chunks, whatever their bucket.</summary>
    Slots = NativeConstants.RFN_WINDOW_SLOTS,

    /// <summary>The same slots, but only keys of its own bucket.</summary>
    SameBucket = NativeConstants.RFN_WINDOW_SAME_BUCKET,

    /// <summary>
    /// Causal only: keys of its own bucket at most chunks-before times chunk-length slots ahead of it. Strictly causal.
    /// </summary>
    Strict = NativeConstants.RFN_WINDOW_STRICT,
}

/// <summary>How a key counts that a query sees in several rounds.</summary>
public enum DuplicateCorrection
{
    /// <summary>Once for each round.</summary>
    None = NativeConstants.RFN_DUPLICATES_NONE,

    /// <summary>Once: its logit is lowered by the logarithm of the number of rounds.</summary>
    LogCount = NativeConstants.RFN_DUPLICATES_LOG_COUNT,
}

/// <summary>How keys that are made from queries are scaled.</summary>
public enum KeyNorm
{
    /// <summary>Not at all.</summary>
    None = NativeConstants.RFN_KEY_NORM_NONE,

    /// <summary>k / sqrt(mean(k^2) + 1e-6).</summary>
    Rms = NativeConstants.RFN_KEY_NORM_RMS,

    /// <summary>k / max(|k|, 1e-12).</summary>
    L2 = NativeConstants.RFN_KEY_NORM_L2,
}

/// <summary>How existing implementations choose the number of buckets from the length.</summary>
public enum BucketRule
{
    /// <summary>About 2 T/C, in two factors above 128.</summary>
    Trax = NativeConstants.RFN_BUCKETS_TRAX,

    /// <summary>A power of two near 2 T/C, in two factors when it is large for the longest sequence.</summary>
    HuggingFace = NativeConstants.RFN_BUCKETS_HUGGING_FACE,

    /// <summary>T/C.</summary>
    Lucidrains = NativeConstants.RFN_BUCKETS_LUCIDRAINS,
}

/// <summary>How a block adds a sub-layer to its stream.</summary>
public enum ResidualMode
{
    /// <summary>Plain float32 addition; hashes are stored for the backward pass.</summary>
    Float = NativeConstants.RFN_RESIDUAL_FLOAT,

    /// <summary>What is added is first rounded to a grid, so that subtraction gives back the same bits.</summary>
    Exact = NativeConstants.RFN_RESIDUAL_EXACT,
}

/// <summary>How the two streams become one at the end of the stack.</summary>
public enum StreamCombination
{
    /// <summary>[stream1, stream2], of twice the width.</summary>
    Concatenate = NativeConstants.RFN_COMBINE_CONCATENATE,

    /// <summary>(stream1 + stream2) / 2.</summary>
    Mean = NativeConstants.RFN_COMBINE_MEAN,
}

/// <summary>Places of a model that draw random numbers; the key of a draw is (seed, step, layer, site).</summary>
public enum RandomSite
{
    /// <summary>Dropout on attention probabilities.</summary>
    AttentionProbabilities = NativeConstants.RFN_SITE_ATTENTION_PROBABILITIES,

    /// <summary>Dropout on the output of attention.</summary>
    AttentionOutput = NativeConstants.RFN_SITE_ATTENTION_OUTPUT,

    /// <summary>Dropout inside the feed-forward layer.</summary>
    FeedForwardHidden = NativeConstants.RFN_SITE_FEED_FORWARD_HIDDEN,

    /// <summary>Dropout on the output of the feed-forward layer.</summary>
    FeedForwardOutput = NativeConstants.RFN_SITE_FEED_FORWARD_OUTPUT,

    /// <summary>Dropout on word embeddings.</summary>
    WordEmbedding = NativeConstants.RFN_SITE_WORD_EMBEDDING,

    /// <summary>Dropout on position embeddings.</summary>
    PositionEmbedding = NativeConstants.RFN_SITE_POSITION_EMBEDDING,

    /// <summary>Dropout after the final norm.</summary>
    FinalNorm = NativeConstants.RFN_SITE_FINAL_NORM,

    /// <summary>Random rotations of the hashes.</summary>
    Rotations = NativeConstants.RFN_SITE_ROTATIONS,

    /// <summary>Initial parameters.</summary>
    Parameters = NativeConstants.RFN_SITE_PARAMETERS,

    /// <summary>Sampling of tokens.</summary>
    Sampling = NativeConstants.RFN_SITE_SAMPLING,

    /// <summary>Order and choice of data.</summary>
    Data = NativeConstants.RFN_SITE_DATA,
}
