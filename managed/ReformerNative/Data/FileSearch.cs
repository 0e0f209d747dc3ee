using ReformerNative.Checkpoints;

namespace ReformerNative.Data;

/// <summary>
/// Finds the text files that paths mean: files themselves, and those in folders and the folders below. Links are
/// followed, and what several paths lead to is taken once. Left out of folders is what is no text of the user's: names
/// that begin with a point, empty files, links to nothing, and folders that hold a run or a checkpoint.
/// </summary>
internal sealed class FileSearch(string pattern)
{
    /// <summary>A folder with one of these was written by a training run.</summary>
    private static readonly string[] WrittenByRuns = [CheckpointFiles.Run, CheckpointFiles.Weights];

    private readonly HashSet<string> _seen = new(StringComparer.Ordinal); // real paths of files and folders
    private readonly List<TextFile> _found = [];

    /// <summary>The files in the order of the paths; those of a folder in the order of their names.</summary>
    /// <exception cref="FileNotFoundException">A path does not exist.</exception>
    public static List<TextFile> Find(IEnumerable<string> paths, string pattern)
    {
        var search = new FileSearch(pattern);
        foreach (string path in paths)
        {
            if (Directory.Exists(path))
            {
                int first = search._found.Count;
                search.AddFolder(path);

                // Ordinal order: the same on every machine.
                search._found.Sort(
                    first, search._found.Count - first,
                    Comparer<TextFile>.Create(static (a, b) => string.CompareOrdinal(a.Path, b.Path)));
            }
            else if (File.Exists(path))
            {
                search.AddNamed(path);
            }
            else
            {
                throw Missing(path, "nothing");
            }
        }

        return search._found;
    }

    private void AddNamed(string path)
    {
        string real = RealPath.Of(path) ?? path;
        if (_seen.Add(real))
        {
            // What has no length is a pipe or a device, which tells its length by being read, or an empty file. The
            // name of a pipe leads to no file.
            var file = new FileInfo(real);
            bool hasLength = file is { Exists: true, Length: > 0 };
            try
            {
                _found.Add(hasLength ? new TextFile(path, file.Length) : TextFile.ReadWhole(path));
            }
            catch (Exception error) when (error is FileNotFoundException or DirectoryNotFoundException)
            {
                throw Missing(path, $"a link to nothing ({real})"); // a link exists even if its target does not
            }
        }
    }

    private static FileNotFoundException Missing(string path, string found) =>
        new($"{path}: expected a text file or a folder, found {found}", path);

    private void AddFolder(string path)
    {
        if (RealPath.Of(path) is not { } real
            || !_seen.Add(real)
            || WrittenByRuns.Any(name => File.Exists(Path.Combine(path, name))))
        {
            return;
        }

        var folder = new DirectoryInfo(path);
        foreach (FileInfo file in Visible(folder.EnumerateFiles(pattern)))
        {
            string inside = Path.Combine(path, file.Name);
            RequireUtf8Name(path, file);
            string? target = file.LinkTarget is null ? Path.Combine(real, file.Name) : RealPath.Of(inside);
            if (target is not null && new FileInfo(target) is { Exists: true, Length: > 0 and var bytes }
                && _seen.Add(target))
            {
                _found.Add(new TextFile(inside, bytes));
            }
        }

        foreach (DirectoryInfo below in Visible(folder.EnumerateDirectories()))
        {
            RequireUtf8Name(path, below);
            AddFolder(Path.Combine(path, below.Name));
        }
    }

    /// <summary>In the order of names: of two links to one file, the same is taken on every machine.</summary>
    private static IEnumerable<T> Visible<T>(IEnumerable<T> entries)
        where T : FileSystemInfo =>
        entries.Where(entry => !entry.Name.StartsWith('.')).OrderBy(entry => entry.Name, StringComparer.Ordinal);

    /// <summary>
    /// .NET decodes names as UTF-8 and replaces what is not, after which the file cannot be opened by its name.
    /// </summary>
    private static void RequireUtf8Name(string folder, FileSystemInfo entry)
    {
        if (entry.Name.Contains('\uFFFD', StringComparison.Ordinal) && !Path.Exists(Path.Combine(folder, entry.Name)))
        {
            throw new ReformerFormatException(folder, $"expected file names in UTF-8, found '{entry.Name}'; rename it");
        }
    }
}
