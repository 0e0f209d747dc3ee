using ReformerNative.Interop;

namespace ReformerNative.Tensors;

/// <summary>Sizes of a tensor's axes, outermost first: none (a scalar) to four.</summary>
public readonly struct TensorShape : IEquatable<TensorShape>
{
    /// <summary>The largest number of axes.</summary>
    public const int MaxRank = 4;

    private readonly long_array4 sizes;

    /// <summary>One axis.</summary>
    /// <param name="size0">Its size.</param>
    public TensorShape(long size0)
        : this([size0])
    {
    }

    /// <summary>Two axes.</summary>
    /// <param name="size0">Size of the outer axis.</param>
    /// <param name="size1">Size of the inner axis.</param>
    public TensorShape(long size0, long size1)
        : this([size0, size1])
    {
    }

    /// <summary>Three axes.</summary>
    /// <param name="size0">Size of the outermost axis.</param>
    /// <param name="size1">Size of the middle axis.</param>
    /// <param name="size2">Size of the innermost axis.</param>
    public TensorShape(long size0, long size1, long size2)
        : this([size0, size1, size2])
    {
    }

    /// <summary>Four axes.</summary>
    /// <param name="size0">Size of the outermost axis.</param>
    /// <param name="size1">Size of the second axis.</param>
    /// <param name="size2">Size of the third axis.</param>
    /// <param name="size3">Size of the innermost axis.</param>
    public TensorShape(long size0, long size1, long size2, long size3)
        : this([size0, size1, size2, size3])
    {
    }

    /// <summary>Any number of axes up to <see cref="MaxRank"/>.</summary>
    /// <param name="sizes">Sizes, outermost first, none negative.</param>
    public TensorShape(ReadOnlySpan<long> sizes)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(sizes.Length, MaxRank, nameof(sizes));
        foreach (long size in sizes)
        {
            ArgumentOutOfRangeException.ThrowIfNegative(size, nameof(sizes));
        }

        sizes.CopyTo(this.sizes);
        Rank = sizes.Length;
        ElementCount = 1;
        foreach (long size in sizes)
        {
            ElementCount = checked(ElementCount * size);
        }
    }

    /// <summary>Number of axes.</summary>
    public int Rank { get; }

    /// <summary>Product of the sizes; 1 for a scalar. (0 for <c>default</c>, the shape of an absent tensor.)</summary>
    public long ElementCount { get; }

    /// <summary>Size of one axis.</summary>
    /// <param name="axis">From 0, the outermost; <c>^1</c> is the innermost.</param>
    public long this[Index axis]
    {
        get
        {
            int offset = axis.GetOffset(Rank);
            return offset >= 0 && offset < Rank
                ? sizes[offset]
                : throw new ArgumentOutOfRangeException(nameof(axis), axis, $"Expected an axis of {this}.");
        }
    }

    /// <summary>Whether two shapes are the same.</summary>
    /// <param name="left">One shape.</param>
    /// <param name="right">The other.</param>
    public static bool operator ==(TensorShape left, TensorShape right) => left.Equals(right);

    /// <summary>Whether two shapes differ.</summary>
    /// <param name="left">One shape.</param>
    /// <param name="right">The other.</param>
    public static bool operator !=(TensorShape left, TensorShape right) => !left.Equals(right);

    /// <summary>The same shape with another outermost size.</summary>
    /// <param name="size">The new size of axis 0.</param>
    /// <returns>The shape.</returns>
    public TensorShape WithRows(long size)
    {
        Span<long> changed = stackalloc long[Rank];
        CopyTo(changed);
        changed[0] = size;
        return new TensorShape(changed);
    }

    /// <summary>Writes the sizes, outermost first.</summary>
    /// <param name="destination">Room for <see cref="Rank"/> sizes.</param>
    public void CopyTo(Span<long> destination) => ((ReadOnlySpan<long>)sizes)[..Rank].CopyTo(destination);

    /// <inheritdoc/>
    public bool Equals(TensorShape other) => Rank == other.Rank && ElementCount == other.ElementCount
        && ((ReadOnlySpan<long>)sizes).SequenceEqual(other.sizes);

    /// <inheritdoc/>
    public override bool Equals(object? obj) => obj is TensorShape other && Equals(other);

    /// <inheritdoc/>
    public override int GetHashCode() => HashCode.Combine(Rank, sizes[0], sizes[1], sizes[2], sizes[3]);

    /// <summary>The sizes in brackets.</summary>
    /// <returns>For example <c>[2, 64, 256]</c>.</returns>
    public override string ToString() => $"[{string.Join(", ", ((ReadOnlySpan<long>)sizes)[..Rank].ToArray())}]";

    internal long_array4 ToNative() => sizes;
}
