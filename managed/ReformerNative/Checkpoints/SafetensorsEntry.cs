namespace ReformerNative.Checkpoints;

/// <summary>Element types of a safetensors file.</summary>
public enum SafetensorsType
{
    /// <summary>One byte, 0 or 1.</summary>
    Bool,

    /// <summary>Unsigned 8-bit integer.</summary>
    U8,

    /// <summary>Signed 8-bit integer.</summary>
    I8,

    /// <summary>Unsigned 16-bit integer.</summary>
    U16,

    /// <summary>Signed 16-bit integer.</summary>
    I16,

    /// <summary>IEEE half precision.</summary>
    F16,

    /// <summary>The upper half of an IEEE single.</summary>
    BF16,

    /// <summary>Unsigned 32-bit integer.</summary>
    U32,

    /// <summary>Signed 32-bit integer.</summary>
    I32,

    /// <summary>IEEE single precision.</summary>
    F32,

    /// <summary>Unsigned 64-bit integer.</summary>
    U64,

    /// <summary>Signed 64-bit integer.</summary>
    I64,

    /// <summary>IEEE double precision.</summary>
    F64,
}

/// <summary>One tensor of a safetensors file: little-endian, row-major.</summary>
public sealed class SafetensorsEntry
{
    internal SafetensorsEntry(string name, SafetensorsType type, long[] shape, long offset, long byteCount)
    {
        Name = name;
        Type = type;
        Shape = shape;
        Offset = offset;
        ByteCount = byteCount;
        ElementCount = byteCount / SafetensorsFormat.SizeOf(type);
    }

    /// <summary>Name, unique in the file.</summary>
    public string Name { get; }

    /// <summary>Element type.</summary>
    public SafetensorsType Type { get; }

    /// <summary>Lengths of the axes; empty for a scalar.</summary>
    public IReadOnlyList<long> Shape { get; }

    /// <summary>Product of the shape.</summary>
    public long ElementCount { get; }

    /// <summary>Bytes of data.</summary>
    public long ByteCount { get; }

    /// <summary>Position of the data in the file, in bytes from its start.</summary>
    internal long Offset { get; }
}

/// <summary>Facts of the format shared by its reader and its writer.</summary>
internal static class SafetensorsFormat
{
    /// <summary>The reference implementation's own limit of the header, in bytes.</summary>
    public const long MaximumHeaderBytes = 100_000_000;

    public const string MetadataName = "__metadata__";

    private static readonly string[] TypeNames =
    [
        "BOOL", "U8", "I8", "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64", "I64", "F64",
    ];

    public static string NameOf(SafetensorsType type) => TypeNames[(int)type];

    public static bool TryParseType(string? name, out SafetensorsType type)
    {
        int index = Array.IndexOf(TypeNames, name);
        type = (SafetensorsType)Math.Max(index, 0);
        return index >= 0;
    }

    public static string KnownTypes => string.Join(", ", TypeNames);

    public static int SizeOf(SafetensorsType type) => type switch
    {
        SafetensorsType.Bool or SafetensorsType.U8 or SafetensorsType.I8 => 1,
        SafetensorsType.U16 or SafetensorsType.I16 or SafetensorsType.F16 or SafetensorsType.BF16 => 2,
        SafetensorsType.U32 or SafetensorsType.I32 or SafetensorsType.F32 => 4,
        _ => 8,
    };

    public static string Describe(IEnumerable<long> shape) => $"[{string.Join(", ", shape)}]";
}
