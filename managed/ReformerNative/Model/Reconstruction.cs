using System.Runtime.InteropServices;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>
/// How far the streams that the backward pass recovered are from those that the forward pass started with.
/// </summary>
/// <param name="BitIdentical">Whether every value has the same bits.</param>
/// <param name="MaxAbs">The largest difference.</param>
public readonly record struct Reconstruction(bool BitIdentical, double MaxAbs)
{
    /// <summary>Values that are compared at a time on the host.</summary>
    private const int HostChunk = 1 << 16;

    /// <summary>Compares two float32 tensors of one shape.</summary>
    internal static Reconstruction Of(TensorView expected, TensorView found)
    {
        var a = new float[HostChunk];
        var b = new float[HostChunk];
        bool identical = true;
        double largest = 0;
        for (long start = 0; start < expected.ElementCount; start += HostChunk)
        {
            int count = (int)Math.Min(HostChunk, expected.ElementCount - start);
            expected.Part(start, new TensorShape(count)).CopyTo(a.AsSpan(0, count));
            found.Part(start, new TensorShape(count)).CopyTo(b.AsSpan(0, count));
            identical &= MemoryMarshal
                .AsBytes(a.AsSpan(0, count))
                .SequenceEqual(MemoryMarshal.AsBytes(b.AsSpan(0, count)));
            for (int i = 0; i < count; i++)
            {
                double difference = Math.Abs((double)a[i] - b[i]);
                largest = difference > largest || double.IsNaN(difference) ? difference : largest;
            }
        }

        return new Reconstruction(identical, largest);
    }

    internal Reconstruction And(Reconstruction other) =>
        new(BitIdentical && other.BitIdentical, Math.Max(MaxAbs, other.MaxAbs));
}
