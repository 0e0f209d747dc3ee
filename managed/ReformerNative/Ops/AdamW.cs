using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// One AdamW update of one parameter: p -= rate (m / (sqrt(v) + epsilon) + decay p), with bias-corrected moments of the
/// scaled gradient.
/// </summary>
public readonly struct AdamW
{
    /// <summary>Step size.</summary>
    public required float LearningRate { get; init; }

    /// <summary>Decay of the first moment.</summary>
    public required float Beta1 { get; init; }

    /// <summary>Decay of the second moment.</summary>
    public required float Beta2 { get; init; }

    /// <summary>Added to the root of the second moment.</summary>
    public required float Epsilon { get; init; }

    /// <summary>Decoupled decay of the parameter.</summary>
    public float WeightDecay { get; init; }

    /// <summary>1 for the first update.</summary>
    public required long Step { get; init; }

    /// <summary>Float32, any shape, updated in place.</summary>
    public required TensorView Parameter { get; init; }

    /// <summary>Same shape.</summary>
    public required TensorView Gradient { get; init; }

    /// <summary>Same shape; zeros before the first update.</summary>
    public required TensorView Moment1 { get; init; }

    /// <summary>Same shape; zeros before the first update.</summary>
    public required TensorView Moment2 { get; init; }

    /// <summary>Float32 [2]: result of <see cref="GlobalNorm"/>; absent, the gradient is taken as it is.</summary>
    public TensorView Clip { get; init; }

    /// <summary>Updates the parameter and its moments.</summary>
    /// <param name="context">The context to run in.</param>
    public unsafe void Run(ReformerContext context)
    {
        ArgumentNullException.ThrowIfNull(context);
        rfn_adamw native = ToNative(context);
        OpCall.Run(in this, context, in native, &NativeMethods.rfn_adamw_step);
    }

    private unsafe rfn_adamw ToNative(ReformerContext context) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_adamw>(),
        learning_rate = LearningRate,
        beta1 = Beta1,
        beta2 = Beta2,
        epsilon = Epsilon,
        weight_decay = WeightDecay,
        step = Step,
        parameter = Parameter.ToNative(context),
        gradient = Gradient.ToNative(context),
        moment1 = Moment1.ToNative(context),
        moment2 = Moment2.ToNative(context),
        clip = Clip.ToResult<rfn_norm_result>(context, DType.Float32),
    };
}
