using System.Globalization;
using ReformerNative.Tensors;

namespace ReformerNative.Cli;

/// <summary>What <c>--memory</c> asks for: bytes in all, or what the device has free.</summary>
/// <param name="Text">As it was written.</param>
/// <param name="Bytes">Bytes; null for what is free.</param>
internal sealed record MemoryLimit(string Text, long? Bytes)
{
    /// <summary>
    /// Part of the free memory that is left alone: other processes, and the page cache of the data, need some.
    /// </summary>
    private const double Margin = 0.1;

    private static readonly (string Name, double Bytes)[] Units =
    [
        ("KiB", 1L << 10), ("MiB", 1L << 20), ("GiB", 1L << 30), ("TiB", 1L << 40), ("KB", 1e3), ("MB", 1e6),
        ("GB", 1e9), ("TB", 1e12), ("B", 1),
    ];

    /// <summary>Reads "6GiB", "6000MB", "1.5 GiB" or "free"; null for anything else.</summary>
    public static MemoryLimit? Parse(string text)
    {
        string word = text.Trim();
        if (word.Equals("free", StringComparison.OrdinalIgnoreCase))
        {
            return new MemoryLimit(text, null);
        }

        (string? name, double unit) = Units.FirstOrDefault(item =>
            word.EndsWith(item.Name, StringComparison.OrdinalIgnoreCase)
        );
        string number = word[..^(name?.Length ?? 0)].Trim();
        return double.TryParse(number, NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out double count)
            && count * unit is > 0 and < 1L << 60
            ? new MemoryLimit(text, (long)(count * unit))
            : null;
    }

    /// <summary>Bytes that buffers may take, beside what is in use without them.</summary>
    public long ForBuffers(ReformerContext context, long inUse) =>
        Bytes is long all ? Math.Max(0, all - inUse) : (long)(context.MemoryInfo.FreeBytes * (1 - Margin));
}
