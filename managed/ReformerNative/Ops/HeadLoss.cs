using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// Output head and cross entropy in one, a chunk of rows at a time: logits = x weight^T + bias are never stored as a
/// whole. N rows, K inputs, V words.
/// </summary>
public readonly struct HeadLoss
{
    /// <summary>Rows with this label do not count.</summary>
    public required int IgnoreIndex { get; init; }

    /// <summary>Part of the target spread over all words, 0 to 1.</summary>
    public float LabelSmoothing { get; init; }

    /// <summary>Factor of the gradients.</summary>
    public required float LossScale { get; init; }

    /// <summary>Divides the summed loss in the gradients; 0 for the rows counted by this call.</summary>
    public double Normalizer { get; init; }

    /// <summary>Rows at a time, 0 for automatic.</summary>
    public long Chunk { get; init; }

    /// <summary>Float32 [N,K].</summary>
    public required TensorView X { get; init; }

    /// <summary>Float32 [V,K].</summary>
    public required TensorView Weight { get; init; }

    /// <summary>Float32 [V]; optional.</summary>
    public TensorView Bias { get; init; }

    /// <summary>Int32 [N]: the ignore index or 0 to V-1.</summary>
    public required TensorView Labels { get; init; }

    /// <summary>
    /// Output, Float64 [3]: sum of losses in nats, rows counted, rows whose largest logit is the label's.
    /// </summary>
    public required TensorView Statistics { get; init; }

    /// <summary>Output of the backward pass: Float32 [N,K]; may be the memory of x.</summary>
    public TensorView GradX { get; init; }

    /// <summary>Backward: Float32 [V,K], added to.</summary>
    public TensorView GradWeight { get; init; }

    /// <summary>Backward: Float32 [V], added to; optional.</summary>
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
        rfn_head_loss native = ToNative(context);
        return OpCall.Size(context, in native, pass, &NativeMethods.rfn_head_loss_workspace);
    }

    /// <summary>Writes <see cref="Statistics"/> alone.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Forward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_head_loss native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, Pass.Forward, &NativeMethods.rfn_head_loss_workspace,
            &NativeMethods.rfn_head_loss_forward);
    }

    /// <summary>
    /// Writes <see cref="Statistics"/> and, in the same pass, the gradients of loss scale times summed loss over
    /// normalizer.
    /// </summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Backward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_head_loss native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, Pass.Backward, &NativeMethods.rfn_head_loss_workspace,
            &NativeMethods.rfn_head_loss_backward);
    }

    private unsafe rfn_head_loss ToNative(ReformerContext context) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_head_loss>(),
        ignore_index = IgnoreIndex,
        label_smoothing = LabelSmoothing,
        loss_scale = LossScale,
        normalizer = Normalizer,
        chunk = Chunk,
        x = X.ToNative(context),
        weight = Weight.ToNative(context),
        bias = Bias.ToNative(context),
        labels = Labels.ToNative(context),
        statistics = Statistics.ToResult<rfn_loss_statistics>(context, DType.Float64),
        grad_x = GradX.ToNative(context),
        grad_weight = GradWeight.ToNative(context),
        grad_bias = GradBias.ToNative(context),
    };
}
