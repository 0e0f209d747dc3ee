using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// Number of hash buckets as a product of one to eight even factors; a bucket's number has a digit for each, the first
/// factor's the least significant. Hashing into factors costs their sum instead of their product.
/// </summary>
public readonly struct BucketFactors : IEquatable<BucketFactors>
{
    /// <summary>The largest number of factors.</summary>
    public const int MaxCount = 8;

    private readonly int_array8 factors;

    /// <summary>The given factors.</summary>
    /// <param name="factors">One to eight even numbers.</param>
    public BucketFactors(params ReadOnlySpan<int> factors)
    {
        ArgumentOutOfRangeException.ThrowIfZero(factors.Length, nameof(factors));
        ArgumentOutOfRangeException.ThrowIfGreaterThan(factors.Length, MaxCount, nameof(factors));
        foreach (int factor in factors)
        {
            if (factor < 2 || factor % 2 != 0)
            {
                throw new ArgumentException($"Expected even factors of at least 2, got {factor}.", nameof(factors));
            }
        }

        factors.CopyTo(this.factors);
        Count = factors.Length;
    }

    /// <summary>Number of factors.</summary>
    public int Count { get; }

    /// <summary>Number of buckets: the product of the factors.</summary>
    public long Buckets
    {
        get
        {
            long product = Count == 0 ? 0 : 1;
            for (int i = 0; i < Count; i++)
            {
                product = checked(product * factors[i]);
            }

            return product;
        }
    }

    /// <summary>Columns of random rotations that a round needs: half the sum of the factors.</summary>
    public long RotationColumns
    {
        get
        {
            long sum = 0;
            for (int i = 0; i < Count; i++)
            {
                sum += factors[i];
            }

            return sum / 2;
        }
    }

    /// <summary>One factor.</summary>
    /// <param name="index">From 0.</param>
    public int this[int index] => index >= 0 && index < Count
        ? factors[index]
        : throw new ArgumentOutOfRangeException(nameof(index), index, $"There are {Count} factors.");

    /// <summary>Whether two lists of factors are the same.</summary>
    /// <param name="left">One list.</param>
    /// <param name="right">The other.</param>
    public static bool operator ==(BucketFactors left, BucketFactors right) => left.Equals(right);

    /// <summary>Whether two lists of factors differ.</summary>
    /// <param name="left">One list.</param>
    /// <param name="right">The other.</param>
    public static bool operator !=(BucketFactors left, BucketFactors right) => !left.Equals(right);

    /// <summary>The factors that an existing implementation chooses by itself.</summary>
    /// <param name="rule">Whose rule.</param>
    /// <param name="length">Tokens of the sequence.</param>
    /// <param name="chunkLength">Tokens of a chunk.</param>
    /// <param name="maxPositions">The model's longest sequence; only <see cref="BucketRule.HuggingFace"/> uses
    /// it.</param>
    /// <returns>The factors.</returns>
    public static unsafe BucketFactors Automatic(BucketRule rule, long length, long chunkLength, long maxPositions)
    {
        NativeLoader.EnsureLoaded();
        int* chosen = stackalloc int[MaxCount];
        int count = 0;
        NativeError.ThrowIfFailed(
            NativeMethods.rfn_lsh_automatic_buckets((int)rule, length, chunkLength, maxPositions, chosen, &count));
        return new BucketFactors(new ReadOnlySpan<int>(chosen, count));
    }

    /// <inheritdoc/>
    public bool Equals(BucketFactors other) => ((ReadOnlySpan<int>)factors).SequenceEqual(other.factors);

    /// <inheritdoc/>
    public override bool Equals(object? obj) => obj is BucketFactors other && Equals(other);

    /// <inheritdoc/>
    public override int GetHashCode() => HashCode.Combine(Count, factors[0], factors[1], factors[2], factors[3]);

    /// <summary>The factors as a product.</summary>
    /// <returns>For example <c>64 x 128</c>.</returns>
    public override string ToString() => string.Join(" x ", ToArray());

    /// <summary>The factors in a new array.</summary>
    /// <returns>The array.</returns>
    public int[] ToArray() => ((ReadOnlySpan<int>)factors)[..Count].ToArray();

    internal int_array8 ToNative() => factors;
}
