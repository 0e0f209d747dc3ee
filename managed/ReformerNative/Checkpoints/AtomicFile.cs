using System.Security.Cryptography;
using System.Text.RegularExpressions;
using ReformerNative.Interop;

namespace ReformerNative.Checkpoints;

/// <summary>
/// Replaces a file in one step, so that a kill or a failing disk at any moment leaves the old content or the new one,
/// never a part. A link stays, and the file that it leads to is replaced.
/// </summary>
internal static partial class AtomicFile
{
    /// <summary>Writes a file beside its place, forces it to the disk and renames it.</summary>
    /// <exception cref="IOException">The disk did not take it, or the place holds what is no regular file.</exception>
    public static void Write(string path, Action<Stream> write)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        FileKind kind = SystemCalls.KindOf(path);
        if (kind is not (FileKind.Nothing or FileKind.Regular))
        {
            throw new IOException(
                $"{path}: expected a file or nothing in the place to write to, found {RegularFile.Describe(kind)}");
        }

        string place = Path.GetFullPath(path);
        if (new FileInfo(place).LinkTarget is not null)
        {
            place = File.ResolveLinkTarget(place, returnFinalTarget: true)!.FullName;
        }

        string temporary = $"{place}.{RandomNumberGenerator.GetHexString(8, lowercase: true)}.tmp"; // nobody else's
        try
        {
            using (var stream = new FileStream(
                temporary, FileMode.CreateNew, FileAccess.Write, FileShare.None, 1 << 16))
            {
                write(stream);
                stream.Flush();
                SystemCalls.Sync(stream.SafeFileHandle, temporary);
            }

            File.Move(temporary, place, overwrite: true);
        }
        catch
        {
            File.Delete(temporary);
            throw;
        }

        SystemCalls.SyncDirectory(Path.GetDirectoryName(place)!);
    }

    public static void WriteText(string path, string text) =>
        Write(path, stream => stream.Write(System.Text.Encoding.UTF8.GetBytes(text)));

    /// <summary>Whether a name is that of a file that <see cref="Write"/> had not finished.</summary>
    public static bool IsTemporary(string name) => TemporaryName().IsMatch(name);

    [GeneratedRegex(@"\.(json|jsonl|safetensors)\.[0-9a-f]+\.tmp$", RegexOptions.CultureInvariant)]
    private static partial Regex TemporaryName();
}
