namespace ReformerNative.Checkpoints;

/// <summary>
/// The small text that a checkout without Git LFS has in place of a large file. It is told from damage, because the
/// remedy is another.
/// </summary>
internal static class GitLfsPointer
{
    private static ReadOnlySpan<byte> Start => "version https://git-lfs.github.com/spec/"u8;

    /// <summary>Refuses a pointer.</summary>
    /// <param name="path">The file.</param>
    /// <param name="bytes">Its first bytes.</param>
    /// <exception cref="ReformerFormatException">It is a pointer.</exception>
    public static void Refuse(string path, ReadOnlySpan<byte> bytes)
    {
        if (bytes.StartsWith(Start))
        {
            throw new ReformerFormatException(
                path, "expected the file itself, found a pointer of Git LFS to it; fetch it with 'git lfs pull'");
        }
    }
}
