using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// One more token of each of B sequences through a <see cref="ReversibleBlock"/> whose earlier tokens are in a cache,
/// in time that does not depend on how many there are (but for attention over all tokens). The CPU has it, CUDA does
/// not.
/// </summary>
public readonly struct ReversibleBlockDecode
{
    /// <summary>Index in the stack; named in range reports.</summary>
    public int Layer { get; init; }

    /// <summary>
    /// What attends to what: causal, without dropout and padded length. LSH sees the last chunks-before times
    /// chunk-length tokens of its bucket, whatever the window; see <see cref="AttentionOptions.IsPrefixCausal"/>.
    /// </summary>
    public required AttentionOptions Attention { get; init; }

    /// <summary>Number of heads.</summary>
    public required int Heads { get; init; }

    /// <summary>Between the maps of the feed-forward layer.</summary>
    public Activation Activation { get; init; }

    /// <summary>Added to variances.</summary>
    public required float LayerNormEpsilon { get; init; }

    /// <summary>How sub-layers are added to the streams.</summary>
    public ResidualMode Residual { get; init; }

    /// <summary>Exact residuals: values are multiples of 2^exponent.</summary>
    public int GridExponent { get; init; }

    /// <summary>Position of the token: how many are in the cache.</summary>
    public long Position { get; init; }

    /// <summary>Float32 [B,1,E], changed in place.</summary>
    public required TensorView Stream1 { get; init; }

    /// <summary>Float32 [B,1,E], changed in place.</summary>
    public required TensorView Stream2 { get; init; }

    /// <summary>
    /// Float32 [B,S,H*D], added to: position p in row p mod S. Local attention needs the rows of its window, others a
    /// row for every token.
    /// </summary>
    public required TensorView Keys { get; init; }

    /// <summary>Float32 [B,S,H*D], added to like <see cref="Keys"/>.</summary>
    public required TensorView Values { get; init; }

    /// <summary>LSH: Float32, see <see cref="AttentionOptions.RotationsShape"/>.</summary>
    public TensorView Rotations { get; init; }

    /// <summary>
    /// LSH: Int32, see <see cref="AttentionOptions.RingsShape"/>, added to: the last positions of every bucket.
    /// </summary>
    public TensorView Rings { get; init; }

    /// <summary>
    /// LSH: Int32, see <see cref="AttentionOptions.CountsShape"/>, added to: how many tokens every bucket had.
    /// </summary>
    public TensorView Counts { get; init; }

    /// <summary>
    /// Int64 [4]; exact residuals need it, see <see cref="ReversibleBlock.RangeReport"/>. An index counts within
    /// [B,1,E].
    /// </summary>
    public TensorView RangeReport { get; init; }

    /// <summary>Parameters.</summary>
    public required BlockParameters Parameters { get; init; }

    /// <summary>Bytes of workspace. Shapes are enough: views may come from <see cref="TensorView.Meta"/>.</summary>
    /// <param name="context">The context that would run it.</param>
    /// <returns>Bytes.</returns>
    public unsafe long WorkspaceBytes(ReformerContext context)
    {
        ArgumentNullException.ThrowIfNull(context);
        rfn_reversible_block_decode native = ToNative(context);
        return OpCall.Size(context, in native, &NativeMethods.rfn_reversible_block_decode_workspace);
    }

    /// <summary>Turns the block's inputs in the streams into its outputs, and adds the token to the cache.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Run(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_reversible_block_decode native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native,
            &NativeMethods.rfn_reversible_block_decode_workspace, &NativeMethods.rfn_reversible_block_decode_forward);
    }

    private unsafe rfn_reversible_block_decode ToNative(ReformerContext context)
    {
        if (Parameters is null)
        {
            throw new InvalidOperationException($"{nameof(ReversibleBlockDecode)} needs {nameof(Parameters)}.");
        }

        return new rfn_reversible_block_decode
        {
            struct_size = (uint)Unsafe.SizeOf<rfn_reversible_block_decode>(),
            layer = Layer,
            attention = Attention.ToNative(),
            heads = Heads,
            activation = (int)Activation,
            layer_norm_epsilon = LayerNormEpsilon,
            residual = (int)Residual,
            grid_exponent = GridExponent,
            position = Position,
            stream1 = Stream1.ToNative(context),
            stream2 = Stream2.ToNative(context),
            keys = Keys.ToNative(context),
            values = Values.ToNative(context),
            rotations = Rotations.ToNative(context),
            rings = Rings.ToNative(context),
            counts = Counts.ToNative(context),
            range_report = RangeReport.ToResult<rfn_range_report>(context, DType.Int64),
            parameters = Parameters.ToNative(context),
        };
    }
}
