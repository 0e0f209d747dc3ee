using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// Adds tokens whose buckets the forward pass of a block gave to the rings that <see cref="ReversibleBlockDecode"/>
/// reads. The CPU has it, CUDA does not.
/// </summary>
public readonly struct BucketRings
{
    /// <summary>Position of the first of the T tokens.</summary>
    public long First { get; init; }

    /// <summary>Int32 [B,H,R,T].</summary>
    public required TensorView Buckets { get; init; }

    /// <summary>Int32, see <see cref="AttentionOptions.RingsShape"/>, added to.</summary>
    public required TensorView Rings { get; init; }

    /// <summary>Int32, see <see cref="AttentionOptions.CountsShape"/>, added to; zero before the first call.</summary>
    public required TensorView Counts { get; init; }

    /// <summary>Adds the tokens.</summary>
    /// <param name="context">The context to run in.</param>
    public unsafe void Run(ReformerContext context)
    {
        ArgumentNullException.ThrowIfNull(context);
        rfn_bucket_rings native = ToNative(context);
        OpCall.Run(in this, context, in native, &NativeMethods.rfn_bucket_rings_forward);
    }

    private rfn_bucket_rings ToNative(ReformerContext context) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_bucket_rings>(),
        first = First,
        buckets = Buckets.ToNative(context),
        rings = Rings.ToNative(context),
        counts = Counts.ToNative(context),
    };
}
