namespace ReformerNative.Data;

/// <summary>
/// Token ids with their labels, B examples of T tokens each, in host memory. One object is filled again and again: its
/// arrays grow when a larger shape is asked for and never shrink.
/// </summary>
public sealed class TokenBatch
{
    /// <summary>A label that takes no part in the loss.</summary>
    public const int IgnoredLabel = -100;

    private int[] _ids = [];
    private int[] _labels = [];
    private byte[] _mask = [];

    /// <summary>Creates a batch.</summary>
    /// <param name="batchSize">B, 1 or more.</param>
    /// <param name="length">T, 1 or more.</param>
    public TokenBatch(int batchSize, int length) => Reshape(batchSize, length);

    /// <summary>B, the number of examples.</summary>
    public int BatchSize { get; private set; }

    /// <summary>T, tokens of an example.</summary>
    public int Length { get; private set; }

    /// <summary>B·T.</summary>
    public int TokenCount => BatchSize * Length;

    /// <summary>Ids [B, T], 0 .. vocabulary-1.</summary>
    public Span<int> Ids => _ids.AsSpan(0, TokenCount);

    /// <summary>
    /// Labels [B, T] in the usual convention: the label of a position is the id at that position (a causal model
    /// compares its output at t with the label at t+1 by itself), or <see cref="IgnoredLabel"/>. A sequence classifier
    /// reads the first label of each example.
    /// </summary>
    public Span<int> Labels => _labels.AsSpan(0, TokenCount);

    /// <summary>Whether <see cref="Mask"/> is in use; without it every token is real.</summary>
    public bool HasMask { get; set; }

    /// <summary>Mask [B, T]: 1 real, 0 padding. Read only when <see cref="HasMask"/>.</summary>
    public Span<byte> Mask => _mask.AsSpan(0, TokenCount);

    /// <summary>Sets the shape. The content is undefined afterwards and the mask is off.</summary>
    /// <param name="batchSize">B, 1 or more.</param>
    /// <param name="length">T, 1 or more.</param>
    public void Reshape(int batchSize, int length)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(batchSize, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(length, 1);
        long tokens = (long)batchSize * length;
        if (tokens > Array.MaxLength)
        {
            throw new ArgumentException(
                $"batch: expected at most {Array.MaxLength} tokens, found {batchSize} x {length}", nameof(batchSize));
        }

        int count = (int)tokens;
        if (count > _ids.Length)
        {
            _ids = new int[count];
            _labels = new int[count];
            _mask = new byte[count];
        }

        BatchSize = batchSize;
        Length = length;
        HasMask = false;
    }
}
