using ReformerNative.Interop;

namespace ReformerNative.Tensors;

/// <summary>
/// What matrix products of a GPU's context round their inputs to. Tensors stay float32 and sums are float32; hashing,
/// softmax, norms, residuals and optimizers are float32 always.
/// </summary>
public enum Precision
{
    /// <summary>Not at all. The default, and the only one of the CPU.</summary>
    Float32 = NativeConstants.RFN_PRECISION_F32,

    /// <summary>10 bits of mantissa. This and the next two need compute capability 8.0.</summary>
    TensorFloat32 = NativeConstants.RFN_PRECISION_TF32,

    /// <summary>7 bits of mantissa.</summary>
    BFloat16 = NativeConstants.RFN_PRECISION_BF16,

    /// <summary>10 bits of mantissa, magnitudes from 6e-8 to 65504.</summary>
    Float16 = NativeConstants.RFN_PRECISION_F16,
}
