using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// Fills a tensor with mean + standard deviation * z, z standard normal and a function of (seed, step, layer, site,
/// index) alone.
/// </summary>
public readonly struct RandomNormal
{
    /// <summary>Part of the key.</summary>
    public int Layer { get; init; }

    /// <summary>Part of the key.</summary>
    public ulong Seed { get; init; }

    /// <summary>Part of the key.</summary>
    public ulong Step { get; init; }

    /// <summary>Part of the key.</summary>
    public required RandomSite Site { get; init; }

    /// <summary>Mean.</summary>
    public float Mean { get; init; }

    /// <summary>Standard deviation.</summary>
    public required float StandardDeviation { get; init; }

    /// <summary>Output: Float32, any shape.</summary>
    public required TensorView Destination { get; init; }

    /// <summary>Writes <see cref="Destination"/>.</summary>
    /// <param name="context">The context to run in.</param>
    public unsafe void Run(ReformerContext context)
    {
        ArgumentNullException.ThrowIfNull(context);
        rfn_random_normal native = ToNative(context);
        OpCall.Run(in this, context, in native, &NativeMethods.rfn_random_normal_forward);
    }

    private rfn_random_normal ToNative(ReformerContext context) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_random_normal>(),
        layer = Layer,
        seed = Seed,
        step = Step,
        site = (int)Site,
        mean = Mean,
        standard_deviation = StandardDeviation,
        destination = Destination.ToNative(context),
    };
}
