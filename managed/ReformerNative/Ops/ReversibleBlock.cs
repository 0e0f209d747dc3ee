using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// A reversible block, in place: stream1 += Attention(LayerNorm(stream2)), then stream2 +=
/// FeedForward(LayerNorm(stream1)). The backward pass takes the outputs, leaves the inputs in their place and
/// differentiates on the way, so no activation is stored. B sequences of T tokens, width E, heads of size D.
/// </summary>
public readonly struct ReversibleBlock
{
    /// <summary>Index in the stack: part of the key of random numbers, and named in range reports.</summary>
    public int Layer { get; init; }

    /// <summary>Seed of the run.</summary>
    public ulong Seed { get; init; }

    /// <summary>Training step; dropout of a step is the same in both passes.</summary>
    public ulong Step { get; init; }

    /// <summary>What attends to what.</summary>
    public required AttentionOptions Attention { get; init; }

    /// <summary>Number of heads.</summary>
    public required int Heads { get; init; }

    /// <summary>Between the maps of the feed-forward layer.</summary>
    public Activation Activation { get; init; }

    /// <summary>Added to variances.</summary>
    public required float LayerNormEpsilon { get; init; }

    /// <summary>Dropout on the output of attention, 0 &lt;= p &lt; 1.</summary>
    public float AttentionOutputDropout { get; init; }

    /// <summary>Both dropouts of the feed-forward layer, 0 &lt;= p &lt; 1.</summary>
    public float FeedForwardDropout { get; init; }

    /// <summary>How sub-layers are added to the streams.</summary>
    public ResidualMode Residual { get; init; }

    /// <summary>
    /// Exact residuals: values are multiples of 2^exponent, -24 to -4. At -16 inversion is exact while streams stay
    /// within 256.
    /// </summary>
    public int GridExponent { get; init; }

    /// <summary>Rows of the feed-forward layer at a time, 0 for automatic.</summary>
    public long FeedForwardChunk { get; init; }

    /// <summary>Heads at a time, 0 for automatic.</summary>
    public long HeadGroup { get; init; }

    /// <summary>Float32 [B,T,E], changed in place.</summary>
    public required TensorView Stream1 { get; init; }

    /// <summary>Float32 [B,T,E], changed in place.</summary>
    public required TensorView Stream2 { get; init; }

    /// <summary>Backward: Float32 [B,T,E], changed in place.</summary>
    public TensorView GradStream1 { get; init; }

    /// <summary>Backward: Float32 [B,T,E], changed in place.</summary>
    public TensorView GradStream2 { get; init; }

    /// <summary>UInt8 [B,T]: 1 for a real token, 0 for padding; optional.</summary>
    public TensorView Mask { get; init; }

    /// <summary>LSH: Float32, see <see cref="AttentionOptions.RotationsShape"/>.</summary>
    public TensorView Rotations { get; init; }

    /// <summary>
    /// LSH: Int32 [B,H,R,T]. Float residuals need it, written by the forward pass and read by the backward pass; else
    /// an optional output, which a backward pass with kept activations reads.
    /// </summary>
    public TensorView Buckets { get; init; }

    /// <summary>
    /// Optional output of the forward pass: Float32 [B,T,H*D], the heads side by side before the output projection. A
    /// backward pass with kept activations reads it.
    /// </summary>
    public TensorView AttentionResult { get; init; }

    /// <summary>
    /// Int64 [4], zeroed before a step; exact residuals need it. [0] counts stream values that left the exact range; of
    /// the first one seen, [1] is the layer (-1: the embedding), [2] the stream (1 or 2), [3] the index of the value.
    /// </summary>
    public TensorView RangeReport { get; init; }

    /// <summary>Parameters.</summary>
    public required BlockParameters Parameters { get; init; }

    /// <summary>Backward: gradients of the parameters, added to.</summary>
    public BlockParameters? Gradients { get; init; }

    /// <summary>
    /// Stream 1 before the block, Float32 [B,T,E]. Like all kept tensors an optional output of the forward pass. A
    /// backward pass that is given both streams does not subtract; one that is given all kept tensors,
    /// <see cref="AttentionResult"/> and (LSH) <see cref="Buckets"/> repeats no product, hash or attention.
    /// </summary>
    public TensorView KeptStream1 { get; init; }

    /// <summary>Stream 2 before the block, Float32 [B,T,E].</summary>
    public TensorView KeptStream2 { get; init; }

    /// <summary>Queries, Float32 [B,T,H*D].</summary>
    public TensorView KeptQuery { get; init; }

    /// <summary>Keys, Float32 [B,T,H*D]; absent when they are the queries.</summary>
    public TensorView KeptKey { get; init; }

    /// <summary>Values, Float32 [B,T,H*D].</summary>
    public TensorView KeptValue { get; init; }

    /// <summary>Logarithms of attention's sums of exponentials, Float32 [B,H,T].</summary>
    public TensorView KeptLogSumExp { get; init; }

    /// <summary>
    /// The hidden layer before its activation, Float32 [B*T,F], in the form that the backend's own backward pass reads.
    /// </summary>
    public TensorView KeptHidden { get; init; }

    /// <summary>
    /// Bytes of workspace that a pass needs. Shapes are enough: views may come from <see cref="TensorView.Meta"/>.
    /// </summary>
    /// <param name="context">The context that would run it.</param>
    /// <param name="pass">The pass.</param>
    /// <returns>Bytes.</returns>
    public unsafe long WorkspaceBytes(ReformerContext context, Pass pass)
    {
        ArgumentNullException.ThrowIfNull(context);
        rfn_reversible_block native = ToNative(context);
        return OpCall.Size(context, in native, pass, &NativeMethods.rfn_reversible_block_workspace);
    }

    /// <summary>Turns the block's inputs in the streams into its outputs.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Forward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_reversible_block native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, Pass.Forward,
            &NativeMethods.rfn_reversible_block_workspace, &NativeMethods.rfn_reversible_block_forward);
    }

    /// <summary>
    /// Turns the block's outputs back into its inputs, the gradients likewise, and adds to the gradients of the
    /// parameters.
    /// </summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Backward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_reversible_block native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, Pass.Backward,
            &NativeMethods.rfn_reversible_block_workspace, &NativeMethods.rfn_reversible_block_backward);
    }

    private unsafe rfn_reversible_block ToNative(ReformerContext context)
    {
        if (Parameters is null)
        {
            throw new InvalidOperationException($"{nameof(ReversibleBlock)} needs {nameof(Parameters)}.");
        }

        return new rfn_reversible_block
        {
            struct_size = (uint)Unsafe.SizeOf<rfn_reversible_block>(),
            layer = Layer,
            seed = Seed,
            step = Step,
            attention = Attention.ToNative(),
            heads = Heads,
            activation = (int)Activation,
            layer_norm_epsilon = LayerNormEpsilon,
            attention_output_dropout = AttentionOutputDropout,
            feed_forward_dropout = FeedForwardDropout,
            residual = (int)Residual,
            grid_exponent = GridExponent,
            feed_forward_chunk = FeedForwardChunk,
            head_group = HeadGroup,
            stream1 = Stream1.ToNative(context),
            stream2 = Stream2.ToNative(context),
            grad_stream1 = GradStream1.ToNative(context),
            grad_stream2 = GradStream2.ToNative(context),
            mask = Mask.ToNative(context),
            rotations = Rotations.ToNative(context),
            buckets = Buckets.ToNative(context),
            attention_result = AttentionResult.ToNative(context),
            range_report = RangeReport.ToResult<rfn_range_report>(context, DType.Int64),
            parameters = Parameters.ToNative(context),
            gradients = Gradients?.ToNative(context) ?? default,
            kept_stream1 = KeptStream1.ToNative(context),
            kept_stream2 = KeptStream2.ToNative(context),
            kept_query = KeptQuery.ToNative(context),
            kept_key = KeptKey.ToNative(context),
            kept_value = KeptValue.ToNative(context),
            kept_log_sum_exp = KeptLogSumExp.ToNative(context),
            kept_hidden = KeptHidden.ToNative(context),
        };
    }
}
