using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// The position-wise layer y = dropout(activation(dropout(x W1^T + b1)) W2^T + b2), a chunk of rows at a time. N rows
/// of width E, hidden width F.
/// </summary>
public readonly struct FeedForward
{
    /// <summary>Between the two maps.</summary>
    public Activation Activation { get; init; }

    /// <summary>Probability of both dropouts, 0 &lt;= p &lt; 1.</summary>
    public float Dropout { get; init; }

    /// <summary>Index of the layer in its stack: part of the key of random numbers.</summary>
    public int Layer { get; init; }

    /// <summary>Seed of the run.</summary>
    public ulong Seed { get; init; }

    /// <summary>Training step; dropout of a step is the same in both passes.</summary>
    public ulong Step { get; init; }

    /// <summary>Rows at a time, 0 for automatic; changes no result beyond rounding.</summary>
    public long Chunk { get; init; }

    /// <summary>Float32 [N,E].</summary>
    public required TensorView X { get; init; }

    /// <summary>Float32 [F,E].</summary>
    public required TensorView W1 { get; init; }

    /// <summary>Float32 [F].</summary>
    public required TensorView B1 { get; init; }

    /// <summary>Float32 [E,F].</summary>
    public required TensorView W2 { get; init; }

    /// <summary>Float32 [E].</summary>
    public required TensorView B2 { get; init; }

    /// <summary>Output of the forward pass: Float32 [N,E].</summary>
    public TensorView Y { get; init; }

    /// <summary>Backward: Float32 [N,E].</summary>
    public TensorView GradY { get; init; }

    /// <summary>Output of the backward pass: Float32 [N,E].</summary>
    public TensorView GradX { get; init; }

    /// <summary>Backward: Float32 [F,E], added to.</summary>
    public TensorView GradW1 { get; init; }

    /// <summary>Backward: Float32 [F], added to.</summary>
    public TensorView GradB1 { get; init; }

    /// <summary>Backward: Float32 [E,F], added to.</summary>
    public TensorView GradW2 { get; init; }

    /// <summary>Backward: Float32 [E], added to.</summary>
    public TensorView GradB2 { get; init; }

    /// <summary>
    /// Bytes of workspace that a pass needs. Shapes are enough: views may come from <see cref="TensorView.Meta"/>.
    /// </summary>
    /// <param name="context">The context that would run it.</param>
    /// <param name="pass">The pass.</param>
    /// <returns>Bytes.</returns>
    public unsafe long WorkspaceBytes(ReformerContext context, Pass pass)
    {
        ArgumentNullException.ThrowIfNull(context);
        rfn_feed_forward native = ToNative(context);
        return OpCall.Size(context, in native, pass, &NativeMethods.rfn_feed_forward_workspace);
    }

    /// <summary>Writes <see cref="Y"/>.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Forward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_feed_forward native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, Pass.Forward, &NativeMethods.rfn_feed_forward_workspace,
            &NativeMethods.rfn_feed_forward_forward);
    }

    /// <summary>
    /// Writes <see cref="GradX"/> and adds to the gradients of the parameters; the hidden layer is computed again.
    /// </summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Backward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_feed_forward native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, Pass.Backward, &NativeMethods.rfn_feed_forward_workspace,
            &NativeMethods.rfn_feed_forward_backward);
    }

    private rfn_feed_forward ToNative(ReformerContext context) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_feed_forward>(),
        activation = (int)Activation,
        dropout = Dropout,
        layer = Layer,
        seed = Seed,
        step = Step,
        chunk = Chunk,
        x = X.ToNative(context),
        w1 = W1.ToNative(context),
        b1 = B1.ToNative(context),
        w2 = W2.ToNative(context),
        b2 = B2.ToNative(context),
        y = Y.ToNative(context),
        grad_y = GradY.ToNative(context),
        grad_x = GradX.ToNative(context),
        grad_w1 = GradW1.ToNative(context),
        grad_b1 = GradB1.ToNative(context),
        grad_w2 = GradW2.ToNative(context),
        grad_b2 = GradB2.ToNative(context),
    };
}
