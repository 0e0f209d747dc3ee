using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// Layer norm over the last axis: y = (x - mean) / sqrt(variance + epsilon) * weight + bias. N rows of width E.
/// </summary>
public readonly struct LayerNorm
{
    /// <summary>Added to the variance.</summary>
    public required float Epsilon { get; init; }

    /// <summary>Float32 [N,E].</summary>
    public required TensorView X { get; init; }

    /// <summary>Float32 [E].</summary>
    public required TensorView Weight { get; init; }

    /// <summary>Float32 [E].</summary>
    public required TensorView Bias { get; init; }

    /// <summary>Output of the forward pass: Float32 [N,E].</summary>
    public TensorView Y { get; init; }

    /// <summary>Backward: Float32 [N,E].</summary>
    public TensorView GradY { get; init; }

    /// <summary>Output of the backward pass: Float32 [N,E].</summary>
    public TensorView GradX { get; init; }

    /// <summary>Backward: Float32 [E], added to.</summary>
    public TensorView GradWeight { get; init; }

    /// <summary>Backward: Float32 [E], added to.</summary>
    public TensorView GradBias { get; init; }

    /// <summary>
    /// Bytes of workspace that a pass needs. Shapes are enough: views may come from <see cref="TensorView.Meta"/>.
    /// </summary>
    /// <param name="context">The context that would run it.</param>
    /// <param name="pass">The pass.</param>
    /// <returns>Bytes.</returns>
    public unsafe long WorkspaceBytes(ReformerContext context, Pass pass)
    {
        ArgumentNullException.ThrowIfNull(context);
        rfn_layer_norm native = ToNative(context);
        return OpCall.Size(context, in native, pass, &NativeMethods.rfn_layer_norm_workspace);
    }

    /// <summary>Writes <see cref="Y"/>.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Forward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_layer_norm native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, Pass.Forward, &NativeMethods.rfn_layer_norm_workspace,
            &NativeMethods.rfn_layer_norm_forward);
    }

    /// <summary>
    /// Writes <see cref="GradX"/> and adds to the gradients of the parameters; statistics are computed again.
    /// </summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Backward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_layer_norm native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, Pass.Backward, &NativeMethods.rfn_layer_norm_workspace,
            &NativeMethods.rfn_layer_norm_backward);
    }

    private rfn_layer_norm ToNative(ReformerContext context) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_layer_norm>(),
        epsilon = Epsilon,
        x = X.ToNative(context),
        weight = Weight.ToNative(context),
        bias = Bias.ToNative(context),
        y = Y.ToNative(context),
        grad_y = GradY.ToNative(context),
        grad_x = GradX.ToNative(context),
        grad_weight = GradWeight.ToNative(context),
        grad_bias = GradBias.ToNative(context),
    };
}
