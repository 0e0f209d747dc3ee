using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>One AdamW step of any number of parameters. Entries of the lists with one index belong together.</summary>
/// <remarks>
/// <para>
/// g = scale * gradient
/// m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2
/// p -= learning_rate (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + epsilon) + weight_decay p)
/// </para>
/// </remarks>
public readonly ref struct AdamW
{
    /// <summary>Factor of the update.</summary>
    public required float LearningRate { get; init; }

    /// <summary>Decay of the first moment.</summary>
    public required float Beta1 { get; init; }

    /// <summary>Decay of the second moment.</summary>
    public required float Beta2 { get; init; }

    /// <summary>Added to the root of the second moment.</summary>
    public required float Epsilon { get; init; }

    /// <summary>1 for the first update.</summary>
    public required long Step { get; init; }

    /// <summary>Float32, updated in place.</summary>
    public required ReadOnlySpan<TensorView> Parameters { get; init; }

    /// <summary>The parameters' shapes.</summary>
    public required ReadOnlySpan<TensorView> Gradients { get; init; }

    /// <summary>The parameters' shapes; zeros before the first step.</summary>
    public required ReadOnlySpan<TensorView> Moments1 { get; init; }

    /// <summary>The parameters' shapes; zeros before the first step.</summary>
    public required ReadOnlySpan<TensorView> Moments2 { get; init; }

    /// <summary>Of each parameter, decoupled from the gradient; empty for none.</summary>
    public ReadOnlySpan<float> WeightDecays { get; init; }

    /// <summary>Of <see cref="GlobalNorm"/>; optional, scale 1 without. Float32 [2]: norm, scale.</summary>
    public TensorView Clip { get; init; }

    /// <summary>Runs it.</summary>
    /// <param name="context">The context to run in.</param>
    /// <exception cref="ArgumentException">The lists are not of one length.</exception>
    public unsafe void Run(ReformerContext context)
    {
        ArgumentNullException.ThrowIfNull(context);
        int count = Parameters.Length;
        using var lists = new TensorLists(context, count, 4);
        lists.Set(0, Parameters, nameof(Parameters));
        lists.Set(1, Gradients, nameof(Gradients));
        lists.Set(2, Moments1, nameof(Moments1));
        lists.Set(3, Moments2, nameof(Moments2));
        if (!WeightDecays.IsEmpty)
        {
            lists.RequireLength(WeightDecays.Length, nameof(WeightDecays));
        }

        fixed (rfn_tensor* first = lists.Tensors)
        fixed (float* decays = WeightDecays)
        {
            var native = new rfn_adamw
            {
                struct_size = (uint)Unsafe.SizeOf<rfn_adamw>(),
                learning_rate = LearningRate,
                beta1 = Beta1,
                beta2 = Beta2,
                epsilon = Epsilon,
                step = Step,
                count = count,
                parameters = first,
                gradients = first + count,
                moments1 = first + (2 * count),
                moments2 = first + (3 * count),
                weight_decays = decays,
                clip = Clip.ToResult<rfn_norm_result>(context, DType.Float32),
            };
            OpCall.Run(in this, context, in native, &NativeMethods.rfn_adamw_step);
        }
    }
}
