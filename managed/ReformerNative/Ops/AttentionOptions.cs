using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// What attends to what. Every combination is data; <see cref="AttentionPreset"/> names the usual ones of LSH
/// attention. With shared queries and keys a token attends to itself only when no round gives it another key; a query
/// without any key gets output 0.
/// </summary>
public readonly record struct AttentionOptions
{
    /// <summary>The kind of attention.</summary>
    public AttentionKind Kind { get; init; }

    /// <summary>Whether keys are the normalised queries, which LSH attention requires.</summary>
    public bool SharedQk { get; init; }

    /// <summary>Whether a query sees no later position than its own.</summary>
    public bool Causal { get; init; }

    /// <summary>LSH: keys that a query sees in one round.</summary>
    public AttentionWindow Window { get; init; }

    /// <summary>
    /// Whether the chunks of all rounds form one ring, as in existing implementations: the first chunk's predecessor is
    /// then the last chunk of the last round. Else a window ends where its round, or the sequence, ends.
    /// </summary>
    public bool Wrap { get; init; }

    /// <summary>Whether a chunk that falls into a window twice counts twice, as in existing implementations.</summary>
    public bool RepeatChunks { get; init; }

    /// <summary>LSH: how a key counts that is seen in several rounds.</summary>
    public DuplicateCorrection Duplicates { get; init; }

    /// <summary>How shared keys are scaled.</summary>
    public KeyNorm KeyNorm { get; init; }

    /// <summary>LSH: hash rounds, at least 1.</summary>
    public int Rounds { get; init; }

    /// <summary>LSH: the buckets.</summary>
    public BucketFactors Factors { get; init; }

    /// <summary>LSH: whether masked positions go to one more bucket, the last, instead of being hashed.</summary>
    public bool PadBucket { get; init; }

    /// <summary>LSH and local: chunks before its own that a query sees.</summary>
    public int ChunksBefore { get; init; }

    /// <summary>LSH and local: chunks after its own that a query sees.</summary>
    public int ChunksAfter { get; init; }

    /// <summary>Factor of the scores; 0 for 1/sqrt(head size).</summary>
    public float LogitScale { get; init; }

    /// <summary>Dropout on the probabilities, 0 &lt;= p &lt; 1.</summary>
    public float Dropout { get; init; }

    /// <summary>LSH and local: tokens of a chunk, at least 1.</summary>
    public long ChunkLength { get; init; }

    /// <summary>
    /// 0 for the length rounded up to a multiple of the chunk length; else such a multiple, and masked positions are
    /// imagined up to it.
    /// </summary>
    public long PaddedLength { get; init; }

    /// <summary>LSH attention in one of the named forms; refine it with <c>with</c>.</summary>
    /// <param name="preset">The form.</param>
    /// <param name="causal">Whether a query sees no later position than its own.</param>
    /// <param name="chunkLength">Tokens of a chunk.</param>
    /// <param name="rounds">Hash rounds.</param>
    /// <param name="factors">The buckets.</param>
    /// <returns>The options.</returns>
    public static AttentionOptions Lsh(
        AttentionPreset preset, bool causal, long chunkLength, int rounds, BucketFactors factors)
    {
        ArgumentNullException.ThrowIfNull(preset);
        return new AttentionOptions
        {
            Kind = AttentionKind.Lsh,
            SharedQk = true,
            Causal = causal,
            Window = preset.Window,
            Wrap = preset.Wrap,
            RepeatChunks = preset.RepeatChunks,
            Duplicates = preset.Duplicates,
            KeyNorm = preset.KeyNorm,
            Rounds = rounds,
            Factors = factors,
            PadBucket = preset.PadBucket,
            ChunksBefore = preset.ChunksBefore,
            ChunksAfter = preset.ChunksAfter,
            ChunkLength = chunkLength,
        };
    }

    /// <summary>Attention within chunks of the sequence and their neighbours, with keys of their own.</summary>
    /// <param name="causal">Whether a query sees no later position than its own.</param>
    /// <param name="chunkLength">Tokens of a chunk.</param>
    /// <param name="chunksBefore">Chunks before its own that a query sees.</param>
    /// <param name="chunksAfter">Chunks after its own that a query sees.</param>
    /// <param name="wrap">Whether the chunks form a ring: the first chunk's predecessor is the last.</param>
    /// <returns>The options.</returns>
    public static AttentionOptions Local(bool causal, long chunkLength, int chunksBefore, int chunksAfter, bool wrap) =>
        new()
        {
            Kind = AttentionKind.Local,
            Causal = causal,
            ChunkLength = chunkLength,
            ChunksBefore = chunksBefore,
            ChunksAfter = chunksAfter,
            Wrap = wrap,
            RepeatChunks = wrap,
        };

    /// <summary>Attention over all tokens, with keys of their own.</summary>
    /// <param name="causal">Whether a query sees no later position than its own.</param>
    /// <returns>The options.</returns>
    public static AttentionOptions Full(bool causal) => new() { Kind = AttentionKind.Full, Causal = causal };

    /// <summary>Shape of the rotations that LSH attention hashes with.</summary>
    /// <param name="scope">Who shares a rotation.</param>
    /// <param name="batch">Sequences.</param>
    /// <param name="heads">Heads.</param>
    /// <param name="headSize">Width of a head.</param>
    /// <returns>[S, head size, rounds, columns], S being 1, heads, or batch times heads.</returns>
    public TensorShape RotationsShape(RotationScope scope, long batch, long heads, long headSize)
    {
        long sets = scope switch
        {
            RotationScope.Shared => 1,
            RotationScope.PerHead => heads,
            _ => checked(batch * heads),
        };
        return new TensorShape(sets, headSize, Rounds, Geometry(1).RotationColumns);
    }

    /// <summary>Shape of the bucket numbers of LSH attention.</summary>
    /// <param name="batch">Sequences.</param>
    /// <param name="heads">Heads.</param>
    /// <param name="length">Tokens.</param>
    /// <returns>[batch, heads, rounds, length].</returns>
    public TensorShape BucketsShape(long batch, long heads, long length) => new(batch, heads, Rounds, length);

    /// <summary>
    /// Whether a token sees what it would see without the tokens after it, so that its result can be kept while more
    /// are added. LSH is so with the strict window alone; local attention unless its chunks form a ring that leads
    /// forwards or meets a chunk twice.
    /// </summary>
    /// <exception cref="ArgumentException">An option is impossible.</exception>
    public bool IsPrefixCausal => Geometry(1).IsPrefixCausal;

    /// <summary>Shape of the rings of an LSH cache: the last positions of every bucket.</summary>
    /// <param name="batch">Sequences.</param>
    /// <param name="heads">Heads.</param>
    /// <returns>[batch times heads, rounds, buckets, chunks before times chunk length or 1].</returns>
    public TensorShape RingsShape(long batch, long heads)
    {
        AttentionGeometry geometry = Geometry(1);
        return new TensorShape(checked(batch * heads), Rounds, geometry.Buckets, geometry.BucketRing);
    }

    /// <summary>Shape of the counts of an LSH cache: how many tokens every bucket had.</summary>
    /// <param name="batch">Sequences.</param>
    /// <param name="heads">Heads.</param>
    /// <returns>[batch times heads, rounds, buckets].</returns>
    public TensorShape CountsShape(long batch, long heads) =>
        new(checked(batch * heads), Rounds, Geometry(1).Buckets);

    /// <summary>What follows from the options for one example of a given length.</summary>
    /// <param name="length">T, tokens of an example.</param>
    /// <returns>Sizes, and what it costs.</returns>
    /// <exception cref="ArgumentException">An option is impossible, alone or with this length.</exception>
    public unsafe AttentionGeometry Geometry(long length)
    {
        NativeLoader.EnsureLoaded();
        rfn_attention_options options = ToNative();
        var geometry = new rfn_attention_geometry { struct_size = (uint)Unsafe.SizeOf<rfn_attention_geometry>() };
        NativeError.ThrowIfFailed(NativeMethods.rfn_attention_describe(in options, length, &geometry));
        return new AttentionGeometry(
            geometry.prefix_causal != 0, geometry.slots, geometry.keys, geometry.buckets, geometry.rotation_columns,
            geometry.bucket_ring, geometry.pairs, geometry.multiply_adds);
    }

    internal rfn_attention_options ToNative() => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_attention_options>(),
        kind = (int)Kind,
        shared_qk = SharedQk ? 1 : 0,
        causal = Causal ? 1 : 0,
        window = (int)Window,
        wrap = Wrap ? 1 : 0,
        repeat_chunks = RepeatChunks ? 1 : 0,
        duplicates = (int)Duplicates,
        key_norm = (int)KeyNorm,
        rounds = Rounds,
        factor_count = Factors.Count,
        factors = Factors.ToNative(),
        pad_bucket = PadBucket ? 1 : 0,
        chunks_before = ChunksBefore,
        chunks_after = ChunksAfter,
        logit_scale = LogitScale,
        dropout = Dropout,
        chunk_length = ChunkLength,
        padded_length = PaddedLength,
    };
}
