namespace ReformerNative.Ops;

/// <summary>Who hashes with the same random rotations.</summary>
public enum RotationScope
{
    /// <summary>All heads of all sequences.</summary>
    Shared,

    /// <summary>A head, in all sequences.</summary>
    PerHead,

    /// <summary>Nobody: each head of each sequence has its own.</summary>
    PerSequenceAndHead,
}

/// <summary>A named form of LSH attention: the choices in which implementations differ, as data.</summary>
/// <param name="Name">The name in configurations and on the command line.</param>
/// <param name="Window">Keys that a query sees in one round.</param>
/// <param name="Duplicates">How a key counts that is seen in several rounds.</param>
/// <param name="KeyNorm">How keys are scaled; the scores are then divided by sqrt(head size).</param>
/// <param name="Wrap">Whether the chunks of all rounds form one ring.</param>
/// <param name="RepeatChunks">Whether a chunk that falls into a window twice counts twice.</param>
/// <param name="PadBucket">Whether masked positions go to a bucket of their own.</param>
/// <param name="ChunksBefore">Chunks before its own that a query sees.</param>
/// <param name="ChunksAfter">Chunks after its own that a query sees.</param>
/// <param name="Rotations">Who shares a rotation.</param>
/// <param name="Buckets">How the number of buckets follows from the length when none is given.</param>
public sealed record AttentionPreset(
    string Name,
    AttentionWindow Window,
    DuplicateCorrection Duplicates,
    KeyNorm KeyNorm,
    bool Wrap,
    bool RepeatChunks,
    bool PadBucket,
    int ChunksBefore,
    int ChunksAfter,
    RotationScope Rotations,
    BucketRule Buckets)
{
    /// <summary>
    /// Trax: every key in the window of slots, each round for itself, rotations for each sequence and head.
    /// </summary>
    public static AttentionPreset Trax { get; } =
        new(
            "trax", AttentionWindow.Slots, DuplicateCorrection.None, KeyNorm.Rms, Wrap: true, RepeatChunks: true,
            PadBucket: true, ChunksBefore: 1, ChunksAfter: 0, RotationScope.PerSequenceAndHead, BucketRule.Trax);

    /// <summary>
    /// Hugging Face: the attention of Trax with its own rule for buckets and rotations for each head; that of published
    /// checkpoints.
    /// </summary>
    public static AttentionPreset HuggingFace { get; } = Trax with
    {
        Name = "hf",
        Rotations = RotationScope.PerHead,
        Buckets = BucketRule.HuggingFace,
    };

    /// <summary>
    /// The paper's definition (equations 6 and 11 to 16): keys of the query's bucket alone, a key of several rounds
    /// counted once.
    /// </summary>
    public static AttentionPreset Paper { get; } =
        Trax with
        {
            Name = "paper",
            Window = AttentionWindow.SameBucket,
            Duplicates = DuplicateCorrection.LogCount,
            Wrap = false,
            RepeatChunks = false,
        };

    /// <summary>reformer-pytorch: unit keys, half as many buckets, one rotation for all heads.</summary>
    public static AttentionPreset Lucidrains { get; } =
        Trax with
        {
            Name = "lucidrains",
            KeyNorm = KeyNorm.L2,
            PadBucket = false,
            Rotations = RotationScope.Shared,
            Buckets = BucketRule.Lucidrains,
        };

    /// <summary>
    /// This library's own, causal only: what a query sees depends on nothing behind it, so that training and decoding
    /// agree exactly.
    /// </summary>
    public static AttentionPreset Strict { get; } = Paper with
    {
        Name = "strict",
        Window = AttentionWindow.Strict,
        Rotations = RotationScope.PerHead,
    };

    /// <summary>All presets.</summary>
    public static IReadOnlyList<AttentionPreset> All { get; } = [Trax, HuggingFace, Paper, Lucidrains, Strict];

    /// <summary>The preset of a name.</summary>
    /// <param name="name">trax, hf, paper, lucidrains or strict.</param>
    /// <returns>The preset.</returns>
    /// <exception cref="ArgumentException">There is no such preset; the message lists them.</exception>
    public static AttentionPreset FromName(string name) =>
        All.FirstOrDefault(preset => preset.Name == name)
        ?? throw new ArgumentException(
            $"Expected an attention preset ({string.Join(", ", All.Select(p => p.Name))}), got '{name}'.",
            nameof(name));
}
