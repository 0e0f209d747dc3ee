using System.Runtime.InteropServices;
using ReformerNative.Tensors;

namespace ReformerNative.Checkpoints;

/// <summary>Float32 tensors of a context in safetensors files, piece by piece. All values are finite.</summary>
internal static class TensorFile
{
    /// <summary>Elements of a piece.</summary>
    public const int ChunkElements = 1 << 18;

    /// <summary>Reads a tensor of finite floats.</summary>
    public static void Read(SafetensorsReader file, SafetensorsEntry entry, TensorView destination)
    {
        var buffer = new float[(int)Math.Min(ChunkElements, destination.ElementCount)];
        for (long start = 0; start < destination.ElementCount; start += buffer.Length)
        {
            Span<float> values = buffer.AsSpan(0, (int)Math.Min(buffer.Length, destination.ElementCount - start));
            file.ReadFloats(entry, start, values);
            int wrong = IndexOfNotFinite(values);
            if (wrong >= 0)
            {
                throw new ReformerFormatException(
                    file.Path,
                    FormattableString.Invariant(
                        $"'{entry.Name}': expected finite values, found {values[wrong]} at element {start + wrong}"));
            }

            destination.Part(start, new TensorShape(values.Length)).CopyFrom<float>(values);
        }
    }

    /// <summary>
    /// A float32 tensor of a context as an item of a file. Values that are not finite are refused when they are
    /// written, as they are when they are read.
    /// </summary>
    public static SafetensorsItem Item(string name, IReadOnlyList<long> shape, TensorView view) =>
        new(name, SafetensorsType.F32, shape, (offset, destination) =>
        {
            Span<float> values = MemoryMarshal.Cast<byte, float>(destination);
            view.Part(offset / sizeof(float), new TensorShape(values.Length)).CopyTo(values);
            int wrong = IndexOfNotFinite(values);
            if (wrong >= 0)
            {
                long element = (offset / sizeof(float)) + wrong;
                throw new NotFiniteNumberException(
                    FormattableString.Invariant(
                        $"'{name}': expected finite values, found {values[wrong]} at element {element}"),
                    values[wrong]);
            }
        });

    private static int IndexOfNotFinite(ReadOnlySpan<float> values)
    {
        for (int i = 0; i < values.Length; i++)
        {
            if (!float.IsFinite(values[i]))
            {
                return i;
            }
        }

        return -1;
    }
}
