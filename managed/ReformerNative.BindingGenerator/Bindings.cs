namespace ReformerNative.BindingGenerator;

/// <summary>Everything that is written from the header, and what else a folder has of its kind.</summary>
internal static class Bindings
{
    private const string Interop = "managed/ReformerNative/Interop";
    private const string Ops = "managed/ReformerNative/Ops";
    private const string DescribeTable = "native/core/describe_table.inc";

    /// <summary>Every file, by path relative to the repository's root.</summary>
    public static IReadOnlyDictionary<string, string> Write(Header header)
    {
        var files = new SortedDictionary<string, string>(StringComparer.Ordinal)
        {
            [DescribeTable] = DescribeTableWriter.Write(header),
        };
        foreach ((string name, string text) in new CSharpWriter(header).Write())
        {
            files.Add($"{Interop}/{name}", text);
        }

        foreach ((string name, string text) in new OpWriter(header).Write())
        {
            files.Add($"{Ops}/{name}", text);
        }

        return files;
    }

    /// <summary>Generated files of the repository that no declaration of the header stands behind any more.</summary>
    public static IEnumerable<string> Orphans(string root, IReadOnlyDictionary<string, string> files) =>
        ((string[])[Interop, Ops])
            .Where(folder => Directory.Exists(Path.Combine(root, folder)))
            .SelectMany(folder => Directory.EnumerateFiles(Path.Combine(root, folder), "*.g.cs"))
            .Select(path => Path.GetRelativePath(root, path).Replace('\\', '/'))
            .Where(path => !files.ContainsKey(path))
            .Order(StringComparer.Ordinal);
}
