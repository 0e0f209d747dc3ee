using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// The end of a reversible stack: y = dropout(LayerNorm(combine(stream1, stream2))). N rows of width E.
/// </summary>
public readonly struct FinalNorm
{
    /// <summary>How the streams become one.</summary>
    public StreamCombination Combine { get; init; }

    /// <summary>Added to the variance.</summary>
    public required float Epsilon { get; init; }

    /// <summary>Probability, 0 &lt;= p &lt; 1.</summary>
    public float Dropout { get; init; }

    /// <summary>Seed of the run.</summary>
    public ulong Seed { get; init; }

    /// <summary>Training step; dropout of a step is the same in both passes.</summary>
    public ulong Step { get; init; }

    /// <summary>
    /// What the first row is in the whole tensor: dropout counts elements from that tensor's start, so that stretches
    /// of rows draw what one call over all rows would.
    /// </summary>
    public long FirstRow { get; init; }

    /// <summary>Float32 [N,E].</summary>
    public required TensorView Stream1 { get; init; }

    /// <summary>Float32 [N,E].</summary>
    public required TensorView Stream2 { get; init; }

    /// <summary>Float32 [2E] or [E].</summary>
    public required TensorView Weight { get; init; }

    /// <summary>Float32 [2E] or [E].</summary>
    public required TensorView Bias { get; init; }

    /// <summary>Output of the forward pass: Float32 [N,2E] or [N,E].</summary>
    public TensorView Y { get; init; }

    /// <summary>Backward: the shape of y.</summary>
    public TensorView GradY { get; init; }

    /// <summary>Output of the backward pass: Float32 [N,E].</summary>
    public TensorView GradStream1 { get; init; }

    /// <summary>Output of the backward pass: Float32 [N,E].</summary>
    public TensorView GradStream2 { get; init; }

    /// <summary>Backward: the shape of weight, added to.</summary>
    public TensorView GradWeight { get; init; }

    /// <summary>Backward: the shape of bias, added to.</summary>
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
        rfn_final_norm native = ToNative(context);
        return OpCall.Size(context, in native, pass, &NativeMethods.rfn_final_norm_workspace);
    }

    /// <summary>Writes <see cref="Y"/>.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Forward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_final_norm native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, Pass.Forward, &NativeMethods.rfn_final_norm_workspace,
            &NativeMethods.rfn_final_norm_forward);
    }

    /// <summary>Writes the gradients of both streams and adds to those of the parameters.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Backward(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_final_norm native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, Pass.Backward, &NativeMethods.rfn_final_norm_workspace,
            &NativeMethods.rfn_final_norm_backward);
    }

    private rfn_final_norm ToNative(ReformerContext context) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_final_norm>(),
        combine = (int)Combine,
        epsilon = Epsilon,
        dropout = Dropout,
        seed = Seed,
        step = Step,
        first_row = FirstRow,
        stream1 = Stream1.ToNative(context),
        stream2 = Stream2.ToNative(context),
        weight = Weight.ToNative(context),
        bias = Bias.ToNative(context),
        y = Y.ToNative(context),
        grad_y = GradY.ToNative(context),
        grad_stream1 = GradStream1.ToNative(context),
        grad_stream2 = GradStream2.ToNative(context),
        grad_weight = GradWeight.ToNative(context),
        grad_bias = GradBias.ToNative(context),
    };
}
