using System.Buffers;
using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Text.Json;
using Microsoft.Win32.SafeHandles;

namespace ReformerNative.Checkpoints;

/// <summary>
/// Reads a safetensors file: 8 bytes header length, a JSON header, the raw data. Opening reads and checks the whole
/// header against the file's real size; tensors are then read one by one at their place, so no more memory is used than
/// the caller asks for. Dispose closes the file. Not for use by several threads at once.
/// </summary>
public sealed class SafetensorsReader : IDisposable
{
    private const int ChunkBytes = 1 << 20;

    private readonly SafeFileHandle _file;
    private readonly Dictionary<string, SafetensorsEntry> _byName;

    private SafetensorsReader(
        string path, SafeFileHandle file, IReadOnlyDictionary<string, string> metadata, List<SafetensorsEntry> entries)
    {
        Path = path;
        _file = file;
        Metadata = metadata;
        Entries = entries;
        _byName = entries.ToDictionary(entry => entry.Name, StringComparer.Ordinal);
    }

    /// <summary>The file as it was named to <see cref="Open"/>.</summary>
    public string Path { get; }

    /// <summary>The free-form strings of the header; empty when it has none.</summary>
    public IReadOnlyDictionary<string, string> Metadata { get; }

    /// <summary>All tensors in the order of their data.</summary>
    public IReadOnlyList<SafetensorsEntry> Entries { get; }

    /// <summary>Opens a file and checks its header.</summary>
    /// <param name="path">The file.</param>
    /// <returns>A reader that the caller disposes.</returns>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="ReformerFormatException">
    /// It is no regular file, it is truncated, its header is not valid, or names, types, shapes and offsets contradict
    /// each other or the file's size.
    /// </exception>
    public static SafetensorsReader Open(string path)
    {
        RegularFile.Require(path, "a safetensors file");
        SafeFileHandle file = File.OpenHandle(
            path, FileMode.Open, FileAccess.Read, FileShare.Read, FileOptions.RandomAccess);
        try
        {
            return OpenChecked(path, file);
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>Finds a tensor by name.</summary>
    /// <param name="name">Its name.</param>
    /// <param name="entry">The tensor, when found.</param>
    /// <returns>Whether the file has it.</returns>
    public bool TryGet(string name, [System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out SafetensorsEntry? entry) =>
        _byName.TryGetValue(name, out entry);

    /// <summary>The tensor of a name.</summary>
    /// <param name="name">Its name.</param>
    /// <returns>The tensor's description.</returns>
    /// <exception cref="ReformerFormatException">The file does not have it.</exception>
    public SafetensorsEntry Get(string name) =>
        TryGet(name, out SafetensorsEntry? entry) ? entry : throw Bad($"expected a tensor named '{name}', found none");

    /// <summary>Reads raw bytes of a tensor's data.</summary>
    /// <param name="entry">A tensor of this file.</param>
    /// <param name="byteOffset">First byte, counted within the tensor.</param>
    /// <param name="destination">Filled whole.</param>
    /// <exception cref="ReformerFormatException">The file ends early (it was cut after it was opened).</exception>
    public void ReadBytes(SafetensorsEntry entry, long byteOffset, Span<byte> destination)
    {
        ArgumentNullException.ThrowIfNull(entry);
        ArgumentOutOfRangeException.ThrowIfNegative(byteOffset);
        if (byteOffset > entry.ByteCount - destination.Length)
        {
            throw new ArgumentOutOfRangeException(
                nameof(byteOffset), byteOffset, $"reads past the {entry.ByteCount} bytes of '{entry.Name}'");
        }

        ReadExactly(Path, _file, entry.Offset + byteOffset, destination);
    }

    /// <summary>Reads floating-point elements as float32 (F32 as it is; F16, BF16 and F64 converted).</summary>
    /// <param name="entry">A tensor of this file.</param>
    /// <param name="firstElement">First element, counted within the tensor.</param>
    /// <param name="destination">Filled whole.</param>
    /// <exception cref="ReformerFormatException">The type is not a floating-point type, or the file ends
    /// early.</exception>
    public void ReadFloats(SafetensorsEntry entry, long firstElement, Span<float> destination)
    {
        ArgumentNullException.ThrowIfNull(entry);
        if (entry.Type
            is not (SafetensorsType.F32 or SafetensorsType.F16 or SafetensorsType.BF16 or SafetensorsType.F64))
        {
            throw Bad($"'{entry.Name}': expected F32, F16, BF16 or F64, found {SafetensorsFormat.NameOf(entry.Type)}");
        }

        int size = SafetensorsFormat.SizeOf(entry.Type);
        if (entry.Type == SafetensorsType.F32 && BitConverter.IsLittleEndian)
        {
            ReadBytes(entry, checked(firstElement * size), MemoryMarshal.AsBytes(destination));
            return;
        }

        Convert(
            entry,
            firstElement,
            destination,
            size,
            static (type, bytes) =>
                type switch
                {
                    SafetensorsType.F16 => (float)BinaryPrimitives.ReadHalfLittleEndian(bytes),
                    SafetensorsType.BF16 => BitConverter.Int32BitsToSingle(
                        BinaryPrimitives.ReadUInt16LittleEndian(bytes) << 16),
                    SafetensorsType.F64 => (float)BinaryPrimitives.ReadDoubleLittleEndian(bytes),
                    _ => BinaryPrimitives.ReadSingleLittleEndian(bytes),
                }
        );
    }

    /// <summary>Reads a whole floating-point tensor as float32.</summary>
    /// <param name="name">Its name.</param>
    /// <returns>The elements, row-major.</returns>
    /// <exception cref="ReformerFormatException">No such tensor, not a floating-point type, or too large for an
    /// array.</exception>
    public float[] ReadFloats(string name)
    {
        SafetensorsEntry entry = Get(name);
        var values = new float[ArrayLength(entry)];
        ReadFloats(entry, 0, values);
        return values;
    }

    /// <summary>Reads a whole integer tensor (I64, I32, I16, I8, U8 or BOOL) as int32.</summary>
    /// <param name="name">Its name.</param>
    /// <returns>The elements, row-major.</returns>
    /// <exception cref="ReformerFormatException">No such tensor, not such a type, or a value that int32 cannot
    /// hold.</exception>
    public int[] ReadIntegers(string name)
    {
        SafetensorsEntry entry = Get(name);
        if (entry.Type is not (SafetensorsType.I64 or SafetensorsType.I32 or SafetensorsType.I16 or SafetensorsType.I8
            or SafetensorsType.U8 or SafetensorsType.Bool))
        {
            throw Bad(
                $"'{entry.Name}': expected I64, I32, I16, I8, U8 or BOOL, found {SafetensorsFormat.NameOf(entry.Type)}"
            );
        }

        var values = new int[ArrayLength(entry)];
        try
        {
            Convert(entry, 0, values.AsSpan(), SafetensorsFormat.SizeOf(entry.Type), static (type, bytes) => type switch
            {
                SafetensorsType.I64 => checked((int)BinaryPrimitives.ReadInt64LittleEndian(bytes)),
                SafetensorsType.I32 => BinaryPrimitives.ReadInt32LittleEndian(bytes),
                SafetensorsType.I16 => BinaryPrimitives.ReadInt16LittleEndian(bytes),
                SafetensorsType.I8 => (sbyte)bytes[0],
                _ => bytes[0],
            });
        }
        catch (OverflowException error)
        {
            throw new ReformerFormatException(
                Path, $"'{name}': expected values that a 32-bit integer holds, found a larger one", error);
        }

        return values;
    }

    /// <inheritdoc/>
    public void Dispose() => _file.Dispose();

    private static SafetensorsReader OpenChecked(string path, SafeFileHandle file)
    {
        long fileBytes = RandomAccess.GetLength(file);
        if (fileBytes < 8)
        {
            throw new ReformerFormatException(
                path, $"expected a safetensors file of at least 8 bytes, found {fileBytes}");
        }

        Span<byte> prefix = stackalloc byte[8];
        ReadExactly(path, file, 0, prefix);
        RefuseGitLfsPointer(path, file, fileBytes);
        ulong headerBytes = BinaryPrimitives.ReadUInt64LittleEndian(prefix);
        long limit = Math.Min(fileBytes - 8, SafetensorsFormat.MaximumHeaderBytes);
        if (headerBytes > (ulong)limit)
        {
            throw new ReformerFormatException(
                path, $"expected a header of at most {limit} bytes, found the length {headerBytes}");
        }

        byte[] header = new byte[(int)headerBytes];
        ReadExactly(path, file, 8, header);
        var metadata = new Dictionary<string, string>(StringComparer.Ordinal);
        List<SafetensorsEntry> entries;
        try
        {
            using JsonDocument json = JsonDocument.Parse(header, new JsonDocumentOptions { MaxDepth = 8 });
            entries = SafetensorsHeader.Parse(path, json.RootElement, 8 + (long)headerBytes, fileBytes, metadata);
        }
        catch (JsonException error)
        {
            throw ReformerFormatException.FromJson(path, "a JSON header", error);
        }
        catch (InvalidOperationException error)
        {
            // A string with an unpaired surrogate cannot be decoded.
            throw new ReformerFormatException(path, $"expected a header of valid text: {error.Message}", error);
        }

        return new SafetensorsReader(path, file, metadata, entries);
    }

    private static void ReadExactly(string path, SafeFileHandle file, long offset, Span<byte> destination)
    {
        while (!destination.IsEmpty)
        {
            int count = RandomAccess.Read(file, destination[..Math.Min(destination.Length, 1 << 30)], offset);
            if (count == 0)
            {
                throw new ReformerFormatException(
                    path, $"expected {destination.Length} more bytes at {offset}, found the end of the file");
            }

            offset += count;
            destination = destination[count..];
        }
    }

    private static void RefuseGitLfsPointer(string path, SafeFileHandle file, long fileBytes)
    {
        byte[] start = new byte[Math.Min(fileBytes, 64)];
        ReadExactly(path, file, 0, start);
        GitLfsPointer.Refuse(path, start);
    }

    private delegate T ElementReader<T>(SafetensorsType type, ReadOnlySpan<byte> bytes);

    private void Convert<T>(
        SafetensorsEntry entry, long firstElement, Span<T> destination, int size, ElementReader<T> read)
    {
        byte[] buffer = ArrayPool<byte>.Shared.Rent(ChunkBytes);
        try
        {
            for (int done = 0; done < destination.Length;)
            {
                int count = Math.Min(destination.Length - done, ChunkBytes / size);
                Span<byte> bytes = buffer.AsSpan(0, count * size);
                ReadBytes(entry, checked((firstElement + done) * size), bytes);
                for (int i = 0; i < count; i++)
                {
                    destination[done + i] = read(entry.Type, bytes.Slice(i * size, size));
                }

                done += count;
            }
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(buffer);
        }
    }

    private int ArrayLength(SafetensorsEntry entry) => entry.ElementCount <= Array.MaxLength
        ? (int)entry.ElementCount
        : throw Bad($"'{entry.Name}': expected at most {Array.MaxLength} elements here, found {entry.ElementCount}");

    private ReformerFormatException Bad(string problem) => new(Path, problem);
}
