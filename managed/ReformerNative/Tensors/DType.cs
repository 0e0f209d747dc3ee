using ReformerNative.Interop;

namespace ReformerNative.Tensors;

/// <summary>Types of elements.</summary>
public enum DType
{
    /// <summary>No type: that of an absent tensor.</summary>
    None = 0,

    /// <summary><see cref="float"/>.</summary>
    Float32 = NativeConstants.RFN_F32,

    /// <summary><see cref="double"/>.</summary>
    Float64 = NativeConstants.RFN_F64,

    /// <summary><see cref="int"/>.</summary>
    Int32 = NativeConstants.RFN_I32,

    /// <summary><see cref="long"/>.</summary>
    Int64 = NativeConstants.RFN_I64,

    /// <summary><see cref="byte"/>.</summary>
    UInt8 = NativeConstants.RFN_U8,

    /// <summary><see cref="Tensors.BFloat16"/>: the range of <see cref="float"/> with 8 significant bits.</summary>
    BFloat16 = NativeConstants.RFN_BF16,

    /// <summary><see cref="Half"/>: 11 significant bits, up to 65504.</summary>
    Float16 = NativeConstants.RFN_F16,
}

/// <summary>Facts about element types.</summary>
public static class DTypes
{
    /// <summary>Bytes of one element.</summary>
    /// <param name="type">The type.</param>
    /// <returns>1, 2, 4 or 8.</returns>
    public static int Size(this DType type) => type switch
    {
        DType.Float32 or DType.Int32 => 4,
        DType.Float64 or DType.Int64 => 8,
        DType.BFloat16 or DType.Float16 => 2,
        DType.UInt8 => 1,
        _ => throw new ArgumentOutOfRangeException(nameof(type), type, "Expected an element type."),
    };

    /// <summary>The element type that holds values of a C# type.</summary>
    /// <typeparam name="T">float, double, int, long, byte, BFloat16 or Half.</typeparam>
    /// <returns>The type.</returns>
    public static DType Of<T>()
        where T : unmanaged =>
        typeof(T) == typeof(float) ? DType.Float32
        : typeof(T) == typeof(double) ? DType.Float64
        : typeof(T) == typeof(int) ? DType.Int32
        : typeof(T) == typeof(long) ? DType.Int64
        : typeof(T) == typeof(byte) ? DType.UInt8
        : typeof(T) == typeof(BFloat16) ? DType.BFloat16
        : typeof(T) == typeof(Half) ? DType.Float16
        : throw new NotSupportedException(
            $"Expected float, double, int, long, byte, BFloat16 or Half, got {typeof(T).Name}.");
}
