using System.Globalization;

namespace ReformerNative.Tensors;

/// <summary>
/// The upper half of a <see cref="float"/>: its range with 8 significant bits. For storage; compute with the
/// <see cref="float"/> that it converts to without loss.
/// </summary>
public readonly struct BFloat16 : IEquatable<BFloat16>
{
    private const ushort NaN = 0x7FFF;

    private BFloat16(ushort bits) => Bits = bits;

    /// <summary>Sign, 8 bits of exponent and 7 of fraction.</summary>
    public ushort Bits { get; }

    /// <summary>The exact value.</summary>
    /// <param name="value">The number.</param>
    public static implicit operator float(BFloat16 value) => value.ToSingle();

    /// <summary>The nearest number, of two the even one.</summary>
    /// <param name="value">The value to be rounded.</param>
    public static explicit operator BFloat16(float value) => FromSingle(value);

    /// <summary>Whether the bits are the same.</summary>
    /// <param name="left">One number.</param>
    /// <param name="right">The other number.</param>
    public static bool operator ==(BFloat16 left, BFloat16 right) => left.Equals(right);

    /// <summary>Whether the bits differ.</summary>
    /// <param name="left">One number.</param>
    /// <param name="right">The other number.</param>
    public static bool operator !=(BFloat16 left, BFloat16 right) => !left.Equals(right);

    /// <summary>The number with given bits.</summary>
    /// <param name="bits">Sign, exponent and fraction.</param>
    /// <returns>The number.</returns>
    public static BFloat16 FromBits(ushort bits) => new(bits);

    /// <summary>The nearest number, of two the even one; as the library rounds.</summary>
    /// <param name="value">The value to be rounded; past the largest number it becomes infinite.</param>
    /// <returns>The number.</returns>
    public static BFloat16 FromSingle(float value)
    {
        uint bits = BitConverter.SingleToUInt32Bits(value);
        return new BFloat16(float.IsNaN(value) ? NaN : (ushort)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16));
    }

    /// <summary>The exact value.</summary>
    /// <returns>The value.</returns>
    public float ToSingle() => BitConverter.UInt32BitsToSingle((uint)Bits << 16);

    /// <inheritdoc/>
    public bool Equals(BFloat16 other) => Bits == other.Bits;

    /// <inheritdoc/>
    public override bool Equals(object? obj) => obj is BFloat16 other && Equals(other);

    /// <inheritdoc/>
    public override int GetHashCode() => Bits;

    /// <summary>The value in words.</summary>
    /// <returns>For example <c>0.5</c>.</returns>
    public override string ToString() => ToSingle().ToString(CultureInfo.InvariantCulture);
}
