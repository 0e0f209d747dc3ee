using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// One Adafactor step of any number of parameters (Shazeer and Stern 2018, without momentum). Second moments of tensors
/// of rank &gt;= 2 are factored over the last two axes; leading axes are merged into rows, and <see cref="Rows"/> and
/// <see cref="Columns"/> hold means. Entries of the lists with one index belong together; those that a parameter has no
/// use for are not read, and a list without any may be empty.
/// </summary>
/// <remarks>
/// <para>
/// rho = 1 - step^-decay_exponent, the decay of second moments
/// alpha = learning_rate * (scale_parameter ? max(epsilon2, rms(p)) : 1)
/// u = g / sqrt(second moment), divided by max(1, rms(u) / clip_threshold)
/// p -= alpha u + learning_rate weight_decay p
/// </para>
/// </remarks>
public readonly ref struct Adafactor
{
    /// <summary>Factor of the update.</summary>
    public required float LearningRate { get; init; }

    /// <summary>0.8.</summary>
    public required float DecayExponent { get; init; }

    /// <summary>1.</summary>
    public required float ClipThreshold { get; init; }

    /// <summary>1e-30, added to squared gradients.</summary>
    public required float Epsilon1 { get; init; }

    /// <summary>1e-3, lower bound of the parameter's scale.</summary>
    public required float Epsilon2 { get; init; }

    /// <summary>Whether the step is multiplied by the parameter's root mean square.</summary>
    public bool ScaleParameter { get; init; }

    /// <summary>1 for the first update.</summary>
    public required long Step { get; init; }

    /// <summary>Float32, updated in place.</summary>
    public required ReadOnlySpan<TensorView> Parameters { get; init; }

    /// <summary>The parameters' shapes.</summary>
    public required ReadOnlySpan<TensorView> Gradients { get; init; }

    /// <summary>Rank &gt;= 2: Float32 [rows]; zeros before the first step.</summary>
    public ReadOnlySpan<TensorView> Rows { get; init; }

    /// <summary>Rank &gt;= 2: Float32 [columns]; zeros before the first step.</summary>
    public ReadOnlySpan<TensorView> Columns { get; init; }

    /// <summary>Rank &lt;= 1: the shape of the parameter; zeros before the first step.</summary>
    public ReadOnlySpan<TensorView> Moments2 { get; init; }

    /// <summary>Of each parameter, decoupled from the gradient; empty for none.</summary>
    public ReadOnlySpan<float> WeightDecays { get; init; }

    /// <summary>Of <see cref="GlobalNorm"/>; optional, scale 1 without. Float32 [2]: norm, scale.</summary>
    public TensorView Clip { get; init; }

    /// <summary>
    /// Bytes of scratch memory that it needs. Shapes are enough: views may come from <see cref="TensorView.Meta"/>.
    /// </summary>
    /// <param name="context">The context that would run it.</param>
    /// <returns>Bytes.</returns>
    /// <exception cref="ArgumentException">The lists are not of one length.</exception>
    public unsafe long WorkspaceBytes(ReformerContext context)
    {
        ArgumentNullException.ThrowIfNull(context);
        using TensorLists lists = Lists(context);
        fixed (rfn_tensor* first = lists.Tensors)
        fixed (float* decays = WeightDecays)
        {
            rfn_adafactor native = ToNative(context, first, decays);
            return OpCall.Size(context, in native, &NativeMethods.rfn_adafactor_workspace);
        }
    }

    /// <summary>Runs it.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    /// <exception cref="ArgumentException">The lists are not of one length.</exception>
    public unsafe void Run(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        using TensorLists lists = Lists(workspace.Context);
        fixed (rfn_tensor* first = lists.Tensors)
        fixed (float* decays = WeightDecays)
        {
            rfn_adafactor native = ToNative(workspace.Context, first, decays);
            OpCall.Run(
                in this, workspace, in native, &NativeMethods.rfn_adafactor_workspace,
                &NativeMethods.rfn_adafactor_step);
        }
    }

    private TensorLists Lists(ReformerContext context)
    {
        var lists = new TensorLists(context, Parameters.Length, 5);
        lists.Set(0, Parameters, nameof(Parameters));
        lists.Set(1, Gradients, nameof(Gradients));
        lists.Set(2, Rows, nameof(Rows));
        lists.Set(3, Columns, nameof(Columns));
        lists.Set(4, Moments2, nameof(Moments2));
        if (!WeightDecays.IsEmpty)
        {
            lists.RequireLength(WeightDecays.Length, nameof(WeightDecays));
        }

        return lists;
    }

    private unsafe rfn_adafactor ToNative(ReformerContext context, rfn_tensor* first, float* decays)
    {
        int count = Parameters.Length;
        return new()
        {
            struct_size = (uint)Unsafe.SizeOf<rfn_adafactor>(),
            learning_rate = LearningRate,
            decay_exponent = DecayExponent,
            clip_threshold = ClipThreshold,
            epsilon1 = Epsilon1,
            epsilon2 = Epsilon2,
            scale_parameter = ScaleParameter ? 1 : 0,
            step = Step,
            count = count,
            parameters = first,
            gradients = first + count,
            rows = first + (2 * count),
            columns = first + (3 * count),
            moments2 = first + (4 * count),
            weight_decays = decays,
            clip = Clip.ToResult<rfn_norm_result>(context, DType.Float32),
        };
    }
}
