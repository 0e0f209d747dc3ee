using System.Buffers;
using System.Buffers.Binary;
using System.Text.Encodings.Web;
using System.Text.Json;

namespace ReformerNative.Checkpoints;

/// <summary>Gives bytes of a tensor that is being written.</summary>
/// <param name="byteOffset">First byte wanted, counted within the tensor.</param>
/// <param name="destination">To be filled whole.</param>
public delegate void SafetensorsSource(long byteOffset, Span<byte> destination);

/// <summary>One tensor to be written.</summary>
/// <param name="Name">Name, unique in the file.</param>
/// <param name="Type">Element type.</param>
/// <param name="Shape">Lengths of the axes; empty for a scalar.</param>
/// <param name="Source">Gives its little-endian, row-major bytes, in pieces in ascending order.</param>
public sealed record SafetensorsItem(
    string Name, SafetensorsType Type, IReadOnlyList<long> Shape, SafetensorsSource Source)
{
    /// <summary>A float32 tensor held in memory.</summary>
    /// <param name="name">Name, unique in the file.</param>
    /// <param name="shape">Lengths of the axes.</param>
    /// <param name="values">The elements, row-major; they are read while the file is written.</param>
    /// <returns>The item.</returns>
    public static SafetensorsItem FromFloats(string name, IReadOnlyList<long> shape, ReadOnlyMemory<float> values) =>
        new(
            name,
            SafetensorsType.F32,
            shape,
            (offset, destination) =>
                System
                    .Runtime.InteropServices.MemoryMarshal.AsBytes(values.Span)
                    .Slice(checked((int)offset), destination.Length)
                    .CopyTo(destination)
        );

    /// <summary>An int32 tensor held in memory.</summary>
    /// <param name="name">Name, unique in the file.</param>
    /// <param name="shape">Lengths of the axes.</param>
    /// <param name="values">The elements, row-major; they are read while the file is written.</param>
    /// <returns>The item.</returns>
    public static SafetensorsItem FromIntegers(string name, IReadOnlyList<long> shape, ReadOnlyMemory<int> values) =>
        new(
            name,
            SafetensorsType.I32,
            shape,
            (offset, destination) =>
                System
                    .Runtime.InteropServices.MemoryMarshal.AsBytes(values.Span)
                    .Slice(checked((int)offset), destination.Length)
                    .CopyTo(destination)
        );
}

/// <summary>
/// Writes safetensors files. The data is streamed; the file is written beside its place, forced to the disk and
/// renamed, so that at any moment the place holds either the old file or the new one.
/// </summary>
public static class SafetensorsWriter
{
    private const int ChunkBytes = 1 << 20;

    /// <summary>Writes a file.</summary>
    /// <param name="path">Where it shall be; an existing file is replaced at the end.</param>
    /// <param name="items">The tensors, in the order their data is to have.</param>
    /// <param name="metadata">Free-form strings for the header; null for none.</param>
    /// <exception cref="ArgumentException">A name is used twice or is reserved, or a length is negative.</exception>
    public static void Write(
        string path, IReadOnlyList<SafetensorsItem> items, IReadOnlyDictionary<string, string>? metadata = null)
    {
        ArgumentNullException.ThrowIfNull(items);
        byte[] header = BuildHeader(items, metadata);
        AtomicFile.Write(path, stream =>
        {
            Span<byte> prefix = stackalloc byte[8];
            BinaryPrimitives.WriteUInt64LittleEndian(prefix, (ulong)header.Length);
            stream.Write(prefix);
            stream.Write(header);
            byte[] buffer = ArrayPool<byte>.Shared.Rent(ChunkBytes);
            try
            {
                foreach (SafetensorsItem item in items)
                {
                    long bytes = ByteCount(item);
                    for (long offset = 0; offset < bytes;)
                    {
                        int count = (int)Math.Min(bytes - offset, ChunkBytes);
                        item.Source(offset, buffer.AsSpan(0, count));
                        stream.Write(buffer, 0, count);
                        offset += count;
                    }
                }
            }
            finally
            {
                ArrayPool<byte>.Shared.Return(buffer);
            }
        });
    }

    private static byte[] BuildHeader(
        IReadOnlyList<SafetensorsItem> items, IReadOnlyDictionary<string, string>? metadata)
    {
        var buffer = new ArrayBufferWriter<byte>();
        using (
            var json = new Utf8JsonWriter(
                buffer, new JsonWriterOptions { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping })
        )
        {
            json.WriteStartObject();
            if (metadata is not null)
            {
                json.WriteStartObject(SafetensorsFormat.MetadataName);
                foreach (
                    KeyValuePair<string, string> pair in metadata.OrderBy(pair => pair.Key, StringComparer.Ordinal))
                {
                    json.WriteString(pair.Key, pair.Value);
                }

                json.WriteEndObject();
            }

            var names = new HashSet<string>(StringComparer.Ordinal);
            long offset = 0;
            foreach (SafetensorsItem item in items)
            {
                if (item.Name == SafetensorsFormat.MetadataName || !names.Add(item.Name))
                {
                    throw new ArgumentException(
                        $"expected unique tensor names other than {SafetensorsFormat.MetadataName}, found "
                            + $"'{item.Name}'",
                        nameof(items)
                    );
                }

                long end = checked(offset + ByteCount(item));
                json.WriteStartObject(item.Name);
                json.WriteString("dtype", SafetensorsFormat.NameOf(item.Type));
                json.WriteStartArray("shape");
                foreach (long length in item.Shape)
                {
                    json.WriteNumberValue(length);
                }

                json.WriteEndArray();
                json.WriteStartArray("data_offsets");
                json.WriteNumberValue(offset);
                json.WriteNumberValue(end);
                json.WriteEndArray();
                json.WriteEndObject();
                offset = end;
            }

            json.WriteEndObject();
        }

        // Spaces up to a multiple of 8 keep the data aligned.
        int padded = (buffer.WrittenCount + 7) / 8 * 8;
        byte[] header = new byte[padded];
        buffer.WrittenSpan.CopyTo(header);
        header.AsSpan(buffer.WrittenCount).Fill((byte)' ');
        return header;
    }

    private static long ByteCount(SafetensorsItem item)
    {
        long bytes = SafetensorsFormat.SizeOf(item.Type);
        foreach (long length in item.Shape)
        {
            ArgumentOutOfRangeException.ThrowIfNegative(length);
            bytes = checked(bytes * length);
        }

        return bytes;
    }
}
