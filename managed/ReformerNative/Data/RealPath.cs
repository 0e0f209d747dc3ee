namespace ReformerNative.Data;

/// <summary>
/// Paths with their links followed. A link's own length is that of its target's name, and a folder may be reached by
/// many paths, so sizes are asked of the real file and folders are told apart by their real paths.
/// </summary>
internal static class RealPath
{
    private const int MostLinks = 40; // as the Linux kernel: beyond, links lead in a circle

    /// <summary>The path without links; null when links lead in a circle. Its end need not exist.</summary>
    public static string? Of(string path)
    {
        string full = Path.GetFullPath(path);
        string real = Path.GetPathRoot(full)!;
        var rest = new Stack<string>();
        Push(full[real.Length..]);
        for (int links = 0; rest.TryPop(out string? name);)
        {
            if (name == "..")
            {
                real = Path.GetDirectoryName(real) ?? real;
                continue;
            }

            string next = Path.Combine(real, name);
            string? target = new FileInfo(next).LinkTarget;
            if (target is null)
            {
                real = next;
                continue;
            }

            if (++links > MostLinks)
            {
                return null;
            }

            string root = Path.GetPathRoot(target)!;
            real = root.Length > 0 ? root : real;
            Push(target[root.Length..]);
        }

        return real;

        void Push(string parts)
        {
            foreach (string part in parts.Split(Path.DirectorySeparatorChar).Reverse())
            {
                if (part is not ("" or "."))
                {
                    rest.Push(part);
                }
            }
        }
    }
}
