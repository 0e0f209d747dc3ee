using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// Word and position embeddings: e = dropout(word[ids]) + dropout(position), written to both streams. B sequences of T
/// tokens, V words, width E.
/// </summary>
public readonly struct Embedding
{
    /// <summary>What tells positions apart.</summary>
    public PositionEncoding Positions { get; init; }

    /// <summary>Probability, 0 &lt;= p &lt; 1, for words and positions separately.</summary>
    public float Dropout { get; init; }

    /// <summary>Seed of the run.</summary>
    public ulong Seed { get; init; }

    /// <summary>Training step; dropout of a step is the same in both passes.</summary>
    public ulong Step { get; init; }

    /// <summary>Position of the first token.</summary>
    public long FirstPosition { get; init; }

    /// <summary>
    /// Exact: e is rounded to multiples of 2^<see cref="GridExponent"/>, as the blocks of a stack with exact residuals
    /// need it.
    /// </summary>
    public ResidualMode Residual { get; init; }

    /// <summary>Exponent of the grid; see <see cref="ReversibleBlock.GridExponent"/>.</summary>
    public int GridExponent { get; init; }

    /// <summary>Int32 [B,T], each from 0 to V-1.</summary>
    public required TensorView Ids { get; init; }

    /// <summary>Float32 [V,E].</summary>
    public required TensorView Word { get; init; }

    /// <summary>
    /// Tables of positions: learned, one of Float32 [max,E]; axial, one to four of Float32 [s_i,e_i], the widths
    /// summing to E.
    /// </summary>
    public PositionTables Position { get; init; }

    /// <summary>Output of the forward pass: Float32 [B,T,E].</summary>
    public TensorView Stream1 { get; init; }

    /// <summary>Output of the forward pass: Float32 [B,T,E]; optional.</summary>
    public TensorView Stream2 { get; init; }

    /// <summary>Backward: Float32 [B,T,E].</summary>
    public TensorView GradStream1 { get; init; }

    /// <summary>Backward: Float32 [B,T,E]; optional.</summary>
    public TensorView GradStream2 { get; init; }

    /// <summary>Backward: Float32 [V,E], added to.</summary>
    public TensorView GradWord { get; init; }

    /// <summary>Backward: the shapes of <see cref="Position"/>, added to.</summary>
    public PositionTables GradPosition { get; init; }

    /// <summary>Int64 [4], see <see cref="ReversibleBlock.RangeReport"/>; optional.</summary>
    public TensorView RangeReport { get; init; }

    /// <summary>
    /// Bytes of workspace that a pass needs. Shapes are enough: views may come from <see cref="TensorView.Meta"/>.
    /// </summary>
    /// <param name="context">The context that would run it.</param>
    /// <param name="pass">The pass.</param>
    /// <returns>Bytes.</returns>
    public unsafe long WorkspaceBytes(ReformerContext context, Pass pass)
    {
        ArgumentNullException.ThrowIfNull(context);
        rfn_embedding native = ToNative(context);
        return OpCall.Size(context, in native, pass, &NativeMethods.rfn_embedding_workspace);
    }

    /// <summary>Writes the streams.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Forward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_embedding native = ToNative(workspace.Context);
        OpCall.Run(
            in this,
            workspace,
            in native,
            Pass.Forward,
            &NativeMethods.rfn_embedding_workspace,
            &NativeMethods.rfn_embedding_forward
        );
    }

    /// <summary>Adds to the gradients of the tables.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Backward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_embedding native = ToNative(workspace.Context);
        OpCall.Run(
            in this,
            workspace,
            in native,
            Pass.Backward,
            &NativeMethods.rfn_embedding_workspace,
            &NativeMethods.rfn_embedding_backward
        );
    }

    private unsafe rfn_embedding ToNative(ReformerContext context) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_embedding>(),
        positions = (int)Positions,
        axes = Position.Count,
        dropout = Dropout,
        seed = Seed,
        step = Step,
        first_position = FirstPosition,
        residual = (int)Residual,
        grid_exponent = GridExponent,
        ids = Ids.ToNative(context),
        word = Word.ToNative(context),
        position = Position.ToNative(context),
        stream1 = Stream1.ToNative(context),
        stream2 = Stream2.ToNative(context),
        grad_stream1 = GradStream1.ToNative(context),
        grad_stream2 = GradStream2.ToNative(context),
        grad_word = GradWord.ToNative(context),
        grad_position = GradPosition.ToNative(context),
        range_report = RangeReport.ToResult<rfn_range_report>(context, DType.Int64),
    };
}

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
