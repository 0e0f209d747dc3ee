using System.Security.Cryptography;
using Microsoft.Win32.SafeHandles;
using ReformerNative.Checkpoints;

namespace ReformerNative.Data;

/// <summary>
/// The bytes of one file, read at their place: a file that is cut short meanwhile gives an error, where a mapped one
/// would end the process. It is opened at its first reading. What cannot be read at a place, a pipe, is held whole.
/// </summary>
internal sealed class TextFile : IDisposable
{
    private const int MostPipedBytes = 1 << 30;

    // Contents are told apart by all bytes of files up to 16 MiB, and by as many, evenly spaced, of larger ones.
    private const int BlockBytes = 1 << 16;
    private const int MostBlocks = 256;

    private const int BinaryCheckBytes = 8000; // as git: a zero byte among the first of them

    private readonly byte[]? _content;
    private SafeFileHandle? _handle;

    public TextFile(string path, long bytes)
    {
        Path = path;
        Name = System.IO.Path.GetFileName(path);
        Bytes = bytes;
    }

    private TextFile(string path, byte[] content)
        : this(path, content.Length)
    {
        Name = "pipe"; // its own is a number that the shell chose
        _content = content;
    }

    /// <summary>The file as it was found.</summary>
    public string Path { get; }

    /// <summary>Its name without folders, which is part of the identity of a data set.</summary>
    public string Name { get; }

    /// <summary>Its length when it was found.</summary>
    public long Bytes { get; }

    /// <summary>Reads a pipe, a device or a file without a known length to its end.</summary>
    public static TextFile ReadWhole(string path)
    {
        using FileStream stream = new(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite, bufferSize: 1);
        using var content = new MemoryStream();
        byte[] buffer = new byte[BlockBytes];
        for (int count; (count = stream.Read(buffer)) > 0;)
        {
            if (content.Length + count > MostPipedBytes)
            {
                throw new ReformerFormatException(
                    path, $"expected at most {MostPipedBytes} bytes through a pipe, found more; write them to a file");
            }

            content.Write(buffer, 0, count);
        }

        return new TextFile(path, content.ToArray());
    }

    /// <summary>Reads bytes.</summary>
    /// <exception cref="ReformerFormatException">The file is shorter than it was.</exception>
    public void Read(long offset, Span<byte> bytes)
    {
        if (_content is not null)
        {
            _content.AsSpan((int)offset, bytes.Length).CopyTo(bytes);
            return;
        }

        _handle ??= File.OpenHandle(
            Path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete, FileOptions.RandomAccess);
        while (!bytes.IsEmpty)
        {
            int count = RandomAccess.Read(_handle, bytes, offset);
            if (count == 0)
            {
                throw new ReformerFormatException(
                    Path,
                    $"expected {Bytes} bytes as when it was found, found {RandomAccess.GetLength(_handle)}: "
                        + "it was cut short while it was in use");
            }

            offset += count;
            bytes = bytes[count..];
        }
    }

    /// <summary>Adds the content to a hash, and says whether it looks like text.</summary>
    /// <exception cref="ReformerFormatException">It is the pointer that Git LFS leaves in place of a file.</exception>
    public bool Inspect(IncrementalHash hash, byte[] scratch)
    {
        long blocks = Math.Min(((Bytes - 1) / BlockBytes) + 1, MostBlocks);
        bool whole = Bytes <= (long)MostBlocks * BlockBytes;
        bool looksLikeText = true;
        for (long block = 0; block < blocks; block++)
        {
            long offset = whole ? block * BlockBytes : (long)((Int128)(Bytes - BlockBytes) * block / (blocks - 1));
            Span<byte> bytes = scratch.AsSpan(0, (int)Math.Min(BlockBytes, Bytes - offset));
            Read(offset, bytes);
            hash.AppendData(bytes);
            if (block == 0)
            {
                GitLfsPointer.Refuse(Path, bytes);
                looksLikeText = !bytes[..Math.Min(bytes.Length, BinaryCheckBytes)].Contains((byte)0);
            }
        }

        return looksLikeText;
    }

    /// <summary>Closes the file; the next reading opens it again.</summary>
    public void Dispose()
    {
        _handle?.Dispose();
        _handle = null;
    }
}
