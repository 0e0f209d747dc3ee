using ReformerNative.Ops;

namespace ReformerNative.Model;

/// <summary>
/// What attends to what in each layer, for sequences of one length: the form depends on the length, because a sequence
/// no longer than a chunk is not divided and layers of kind <see cref="AttentionKind.Auto"/> choose. Needs no memory.
/// </summary>
internal sealed class LayerForms
{
    private readonly ReformerConfig _config;
    private readonly int _length;
    private readonly int _rounds;
    private readonly bool _fullAttention;
    private readonly AttentionKind[] _kinds; // none is Auto
    private readonly long _padded;
    private readonly BucketFactors _factors;
    private readonly AttentionPreset _lsh;

    /// <summary>Finds the forms.</summary>
    /// <param name="config">The model's; it names its buckets if a layer hashes at this length.</param>
    /// <param name="length">T, tokens of a sequence.</param>
    /// <param name="rounds">R, hash rounds.</param>
    /// <param name="fullAttention">Whether LSH layers attend to the whole sequence.</param>
    public LayerForms(ReformerConfig config, int length, int rounds, bool fullAttention)
    {
        _config = config;
        _length = length;
        _rounds = rounds;
        _fullAttention = fullAttention;
        _kinds = [.. config.AttnLayers.Select(kind => AttentionCost.Resolve(config, kind, length))];
        _padded = PaddedLength(config, length, fullAttention);
        _factors = config.NumBuckets is { } factors ? new BucketFactors([.. factors]) : default;
        _lsh = config.Lsh;
        FirstHashed = Enumerable.Range(0, Count).Where(IsHashed).DefaultIfEmpty(-1).First();
    }

    /// <summary>Number of layers.</summary>
    public int Count => _kinds.Length;

    /// <summary>The first layer that hashes; -1 when none does. All that do have rotations of one shape.</summary>
    public int FirstHashed { get; }

    /// <summary>
    /// The length a sequence is thought to be padded to: a multiple of all chunk lengths in use, unless it is no longer
    /// than the smallest of them.
    /// </summary>
    public static long PaddedLength(ReformerConfig config, long length, bool fullAttention)
    {
        long common = 1;
        long smallest = long.MaxValue;
        foreach (AttentionKind kind in config.AttnLayers.Distinct())
        {
            long chunk = AttentionCost.Resolve(config, kind, length) switch
            {
                AttentionKind.Lsh when !fullAttention => config.LshAttnChunkLength,
                AttentionKind.Local => config.LocalAttnChunkLength,
                _ => 0,
            };
            if (chunk > 0)
            {
                common = checked(common / Gcd(common, chunk) * chunk);
                smallest = Math.Min(smallest, chunk);
            }
        }

        if (length <= smallest)
        {
            return length;
        }

        long last = int.MaxValue / common * common;
        return length <= last
            ? (length + common - 1) / common * common
            : throw new ArgumentException(
                $"length: expected at most {last}, a multiple of the chunks' lengths, found {length}");
    }

    /// <summary>
    /// The configuration itself if it names buckets or needs none at this length, else one with the buckets of its
    /// rule.
    /// </summary>
    public static ReformerConfig WithBuckets(ReformerConfig config, int length)
    {
        long padded = PaddedLength(config, length, fullAttention: false);
        if (config.NumBuckets is not null || padded <= config.LshAttnChunkLength
            || !config.AttnLayers.Any(kind => AttentionCost.Resolve(config, kind, length) == AttentionKind.Lsh))
        {
            return config;
        }

        BucketFactors factors = BucketFactors.Automatic(
            config.Lsh.Buckets, padded, config.LshAttnChunkLength, config.MaxPositionEmbeddings);
        return config with { NumBuckets = factors.ToArray() };
    }

    /// <summary>The longest sequence whose layers have the forms that they have at this length.</summary>
    public static int LastLength(ReformerConfig config, int length)
    {
        (bool, bool) Chunked(int at)
        {
            long padded = PaddedLength(config, at, fullAttention: false);
            return (padded > config.LshAttnChunkLength, padded > config.LocalAttnChunkLength);
        }

        long largest = Math.Max(config.LshAttnChunkLength, config.LocalAttnChunkLength);
        (bool, bool) now = Chunked(length);
        int last = length;
        while (last <= largest && Chunked(last + 1) == now)
        {
            last++;
        }

        last = last > largest ? int.MaxValue : last;
        long? crossover = config.AttnLayers.Contains(AttentionKind.Auto) ? AttentionCost.Crossover(config) : null;
        return length < crossover ? (int)Math.Min(last, crossover.Value - 1) : last;
    }

    /// <summary>
    /// Whether a layer hashes: one whose sequence is no longer than its chunk attends to the whole sequence.
    /// </summary>
    public bool IsHashed(int layer) =>
        _kinds[layer] == AttentionKind.Lsh && !_fullAttention && _padded > _config.LshAttnChunkLength;

    /// <summary>What attends to what in a layer.</summary>
    /// <param name="layer">Its index.</param>
    /// <param name="dropout">Whether dropout is on.</param>
    /// <param name="masked">Whether some token is padding.</param>
    public AttentionOptions Attention(int layer, bool dropout, bool masked)
    {
        bool shared = _config.AttnLayers[layer] is AttentionKind.Lsh or AttentionKind.Auto;
        float probability = !dropout ? 0
            : shared ? (float)_config.LshAttentionProbsDropoutProb : (float)_config.LocalAttentionProbsDropoutProb;
        if (IsHashed(layer))
        {
            return AttentionOptions.Lsh(
                _lsh, _config.IsDecoder, _config.LshAttnChunkLength, _rounds, _factors) with
            {
                // The masked positions imagined behind the sequence count as padding, as padding in the input does.
                PadBucket = masked || _padded > _length,
                PaddedLength = _padded,
                LogitScale = (float)(_config.LshLogitScale ?? 0),
                Dropout = probability,
            };
        }

        if (_kinds[layer] == AttentionKind.Local && _padded > _config.LocalAttnChunkLength)
        {
            return AttentionOptions.Local(
                _config.IsDecoder, _config.LocalAttnChunkLength, _config.LocalNumChunksBefore,
                _config.LocalNumChunksAfter, _config.LocalWrap) with
            {
                PaddedLength = _padded,
                Dropout = probability,
            };
        }

        AttentionOptions full = AttentionOptions.Full(_config.IsDecoder) with { Dropout = probability };
        return shared
            ? full with { SharedQk = true, KeyNorm = _lsh.KeyNorm, LogitScale = (float)(_config.LshLogitScale ?? 0) }
            : full;
    }

    private static long Gcd(long a, long b) => b == 0 ? a : Gcd(b, a % b);
}
