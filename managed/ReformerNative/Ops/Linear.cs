using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>A linear map: y = activation(x weight^T + bias). N rows, K inputs, M outputs.</summary>
public readonly struct Linear
{
    /// <summary>Applied to the result.</summary>
    public Activation Activation { get; init; }

    /// <summary>Float32 [N,K].</summary>
    public required TensorView X { get; init; }

    /// <summary>Float32 [M,K].</summary>
    public required TensorView Weight { get; init; }

    /// <summary>Float32 [M]; optional.</summary>
    public TensorView Bias { get; init; }

    /// <summary>Output of the forward pass: Float32 [N,M].</summary>
    public TensorView Y { get; init; }

    /// <summary>Backward: Float32 [N,M].</summary>
    public TensorView GradY { get; init; }

    /// <summary>Output of the backward pass: Float32 [N,K]; optional.</summary>
    public TensorView GradX { get; init; }

    /// <summary>Backward: Float32 [M,K], added to.</summary>
    public TensorView GradWeight { get; init; }

    /// <summary>Backward: Float32 [M], added to; optional.</summary>
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
        rfn_linear native = ToNative(context);
        return OpCall.Size(context, in native, pass, &NativeMethods.rfn_linear_workspace);
    }

    /// <summary>Writes <see cref="Y"/>.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Forward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_linear native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, Pass.Forward, &NativeMethods.rfn_linear_workspace,
            &NativeMethods.rfn_linear_forward);
    }

    /// <summary>
    /// Writes <see cref="GradX"/> and adds to the gradients of the parameters; the pre-activation is computed again.
    /// </summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Backward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_linear native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, Pass.Backward, &NativeMethods.rfn_linear_workspace,
            &NativeMethods.rfn_linear_backward);
    }

    private rfn_linear ToNative(ReformerContext context) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_linear>(),
        activation = (int)Activation,
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
