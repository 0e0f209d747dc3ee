using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>None to four tables of position embeddings.</summary>
public readonly struct PositionTables
{
    /// <summary>The largest number of tables.</summary>
    public const int MaxCount = 4;

    private readonly Tables tables;

    /// <summary>The given tables.</summary>
    /// <param name="tables">At most four.</param>
    public PositionTables(params ReadOnlySpan<TensorView> tables)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(tables.Length, MaxCount, nameof(tables));
        tables.CopyTo(this.tables);
        Count = tables.Length;
    }

    /// <summary>Number of tables.</summary>
    public int Count { get; }

    /// <summary>One table.</summary>
    /// <param name="index">From 0.</param>
    public TensorView this[int index] => index >= 0 && index < Count
        ? tables[index]
        : throw new ArgumentOutOfRangeException(nameof(index), index, $"There are {Count} tables.");

    internal rfn_tensor_array4 ToNative(ReformerContext context)
    {
        var native = default(rfn_tensor_array4);
        for (int i = 0; i < Count; i++)
        {
            native[i] = tables[i].ToNative(context);
        }

        return native;
    }

    [InlineArray(MaxCount)]
    private struct Tables
    {
        private TensorView first;
    }
}
