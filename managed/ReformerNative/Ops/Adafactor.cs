using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// One Adafactor update (Shazeer and Stern 2018, without momentum) of one parameter, with second moments factored over
/// its last two axes.
/// </summary>
public readonly struct Adafactor
{
    /// <summary>Step size.</summary>
    public required float LearningRate { get; init; }

    /// <summary>The second moments decay by 1 - step^-exponent.</summary>
    public required float DecayExponent { get; init; }

    /// <summary>The update is divided by max(1, its root mean square / threshold).</summary>
    public required float ClipThreshold { get; init; }

    /// <summary>Added to squared gradients.</summary>
    public required float Epsilon1 { get; init; }

    /// <summary>Lower bound of the parameter's scale.</summary>
    public required float Epsilon2 { get; init; }

    /// <summary>Decoupled decay of the parameter.</summary>
    public float WeightDecay { get; init; }

    /// <summary>Whether the step size is multiplied by the parameter's root mean square.</summary>
    public bool ScaleParameter { get; init; }

    /// <summary>1 for the first update.</summary>
    public required long Step { get; init; }

    /// <summary>Float32, any shape, updated in place.</summary>
    public required TensorView Parameter { get; init; }

    /// <summary>Same shape.</summary>
    public required TensorView Gradient { get; init; }

    /// <summary>
    /// Rank 2 and more: Float32 [rows], where leading axes count as rows; zeros before the first update.
    /// </summary>
    public TensorView Row { get; init; }

    /// <summary>Rank 2 and more: Float32 [columns]; zeros before the first update.</summary>
    public TensorView Column { get; init; }

    /// <summary>Rank 0 and 1: the shape of the parameter; zeros before the first update.</summary>
    public TensorView Moment2 { get; init; }

    /// <summary>Float32 [2]: result of <see cref="GlobalNorm"/>; absent, the gradient is taken as it is.</summary>
    public TensorView Clip { get; init; }

    /// <summary>
    /// Bytes of workspace that it needs. Shapes are enough: views may come from <see cref="TensorView.Meta"/>.
    /// </summary>
    /// <param name="context">The context that would run it.</param>
    /// <returns>Bytes.</returns>
    public unsafe long WorkspaceBytes(ReformerContext context)
    {
        ArgumentNullException.ThrowIfNull(context);
        rfn_adafactor native = ToNative(context);
        return OpCall.Size(context, in native, &NativeMethods.rfn_adafactor_workspace);
    }

    /// <summary>Updates the parameter and its moments.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Run(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_adafactor native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, &NativeMethods.rfn_adafactor_workspace,
            &NativeMethods.rfn_adafactor_step);
    }

    private unsafe rfn_adafactor ToNative(ReformerContext context) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_adafactor>(),
        learning_rate = LearningRate,
        decay_exponent = DecayExponent,
        clip_threshold = ClipThreshold,
        epsilon1 = Epsilon1,
        epsilon2 = Epsilon2,
        weight_decay = WeightDecay,
        scale_parameter = ScaleParameter ? 1 : 0,
        step = Step,
        parameter = Parameter.ToNative(context),
        gradient = Gradient.ToNative(context),
        row = Row.ToNative(context),
        column = Column.ToNative(context),
        moment2 = Moment2.ToNative(context),
        clip = Clip.ToResult<rfn_norm_result>(context, DType.Float32),
    };
}
