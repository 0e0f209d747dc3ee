using ReformerNative.Interop;

namespace ReformerNative.Checkpoints;

/// <summary>
/// Files that are read whole or at any place: no devices, which may never end, and no pipes, which may never begin.
/// </summary>
internal static class RegularFile
{
    /// <summary>Refuses what is no regular file.</summary>
    /// <param name="path">The file.</param>
    /// <param name="expected">What it should be, with its article, for the sentence.</param>
    /// <exception cref="FileNotFoundException">There is no file.</exception>
    /// <exception cref="ReformerFormatException">It is a device or a pipe.</exception>
    public static void Require(string path, string expected)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        FileKind kind = SystemCalls.KindOf(path);
        if (kind is FileKind.Nothing or FileKind.Directory)
        {
            throw new FileNotFoundException($"{path}: expected {expected}, found {Describe(kind)}", path);
        }

        if (kind != FileKind.Regular)
        {
            throw new ReformerFormatException(path, $"expected {expected}, found {Describe(kind)}");
        }
    }

    /// <summary>Reads a small file of text whole.</summary>
    /// <param name="path">The file.</param>
    /// <param name="expected">What it should be, with its article, for the sentence.</param>
    /// <param name="maximumBytes">A file of more bytes is refused, however long it says it is.</param>
    /// <exception cref="FileNotFoundException">There is no file.</exception>
    /// <exception cref="ReformerFormatException">It is no regular file, or has more bytes.</exception>
    public static string ReadText(string path, string expected, int maximumBytes)
    {
        Require(path, expected);
        using var stream = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
        using var text = new MemoryStream();
        var buffer = new byte[1 << 16];
        for (int count = stream.Read(buffer); count > 0; count = stream.Read(buffer))
        {
            if (text.Length + count > maximumBytes)
            {
                throw new ReformerFormatException(
                    path, $"expected {expected} of at most {maximumBytes} bytes, found more");
            }

            text.Write(buffer, 0, count);
        }

        text.Position = 0;
        using var reader = new StreamReader(text);
        return reader.ReadToEnd();
    }

    /// <summary>A kind of file with its article.</summary>
    public static string Describe(FileKind kind) => kind switch
    {
        FileKind.Nothing => "nothing",
        FileKind.Directory => "a directory",
        FileKind.Device => "a device",
        FileKind.Pipe => "a pipe",
        _ => "a file",
    };
}
