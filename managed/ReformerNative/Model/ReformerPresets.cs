using ReformerNative.Data;
using ReformerNative.Ops;

namespace ReformerNative.Model;

/// <summary>Ready configurations.</summary>
public static class ReformerPresets
{
    /// <summary>Names of all presets.</summary>
    public static IReadOnlyList<string> Names { get; } = ["enwik8", "crime-and-punishment", "text", "duplication"];

    /// <summary>
    /// The published character model of 65,536 tokens (149,182,722 parameters), with the residual of its checkpoint.
    /// </summary>
    public static ReformerConfig Enwik8 => new()
    {
        Residual = ResidualMode.Float,
        AttentionHeadSize = 128,
        AttnLayers = Repeat(3, AttentionKind.Local, AttentionKind.Local, AttentionKind.Lsh, AttentionKind.Local),
        AxialPosShape = [128, 512],
        AxialPosEmbdsDim = [256, 768],
        FeedForwardSize = 4096,
        HiddenDropoutProb = 0.2,
        HiddenSize = 1024,
        IsDecoder = true,
        LocalAttentionProbsDropoutProb = 0.2,
        LocalAttnChunkLength = 128,
        LshAttentionProbsDropoutProb = 0.1,
        LshAttnChunkLength = 256,
        MaxPositionEmbeddings = 65536,
        NumAttentionHeads = 8,
        NumBuckets = [512],
        NumHashes = 4,
        VocabSize = ByteVocabulary.Size,
    };

    /// <summary>
    /// The published subword model of 524,288 tokens (2,748,224 parameters), with the residual of its checkpoint.
    /// </summary>
    public static ReformerConfig CrimeAndPunishment => new()
    {
        Residual = ResidualMode.Float,
        AttentionHeadSize = 64,
        AttnLayers = Repeat(3, AttentionKind.Local, AttentionKind.Lsh),
        AxialPosShape = [512, 1024],
        AxialPosEmbdsDim = [64, 192],
        FeedForwardSize = 512,
        HiddenSize = 256,
        IsDecoder = true,
        MaxPositionEmbeddings = 524288,
        NumAttentionHeads = 2,
        NumBuckets = [64, 128],
        NumHashes = 1,
        VocabSize = 320,
    };

    /// <summary>
    /// A small byte-level model of up to 16,384 tokens, strictly causal, for a few minutes on a processor.
    /// </summary>
    public static ReformerConfig Text => new()
    {
        AttentionHeadSize = 64,
        AttnLayers = Repeat(2, AttentionKind.Local, AttentionKind.Lsh),
        AxialPosShape = [128, 128],
        AxialPosEmbdsDim = [64, 192],
        AxialNormStd = 0.02,
        EosTokenId = ByteVocabulary.EndOfText,
        FeedForwardSize = 1024,
        HiddenAct = "gelu_new",
        HiddenDropoutProb = 0,
        HiddenSize = 256,
        IsDecoder = true,
        LayerNormEps = 1e-6,
        LocalAttentionProbsDropoutProb = 0,
        LshPreset = AttentionPreset.Strict,
        MaxPositionEmbeddings = 16384,
        NumAttentionHeads = 4,
        NumHashes = 2,
        VocabSize = ByteVocabulary.Size,
    };

    /// <summary>
    /// The paper's model for the duplication task: one layer of width 256, 4 heads, learned positions, four hash
    /// rounds.
    /// </summary>
    public static ReformerConfig Duplication => new()
    {
        AttentionHeadSize = 64,
        AttnLayers = [AttentionKind.Lsh],
        FeedForwardSize = 256,
        HiddenDropoutProb = 0,
        HiddenSize = 256,
        IsDecoder = true,
        LayerNormEps = 1e-6,
        LshPreset = AttentionPreset.Strict,
        LshAttnChunkLength = 16,
        MaxPositionEmbeddings = 1024,
        NumAttentionHeads = 4,
        NumHashes = 4,
        Positions = PositionEncoding.Learned,
        VocabSize = 128,
    };

    /// <summary>The preset of a name.</summary>
    /// <param name="name">One of <see cref="Names"/>.</param>
    /// <returns>The configuration.</returns>
    /// <exception cref="ArgumentException">There is no such preset; the message lists them.</exception>
    public static ReformerConfig FromName(string name) =>
        name switch
        {
            "enwik8" => Enwik8,
            "crime-and-punishment" => CrimeAndPunishment,
            "text" => Text,
            "duplication" => Duplication,
            _ => throw new ArgumentException(
                $"preset: expected one of {string.Join(", ", Names)}, found '{name}'", nameof(name)),
        };

    private static AttentionKind[] Repeat(int times, params AttentionKind[] pattern) =>
        [.. Enumerable.Repeat(pattern, times).SelectMany(kinds => kinds)];
}
