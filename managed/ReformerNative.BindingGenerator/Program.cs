using ReformerNative.BindingGenerator;

// bindings [--check] [REPOSITORY_ROOT]
// Writes the *.g.cs of managed/ReformerNative/Interop and Ops and native/core/describe_table.inc from
// native/include/reformer_native.h, or with --check only compares.
// Exit codes: 0 written or equal, 1 different or failed, 2 wrong usage.
bool check = args.Contains("--check");
string[] rest = [.. args.Where(a => a != "--check")];
if (rest.Length > 1 || rest.Any(a => a.StartsWith('-')))
{
    Console.Error.WriteLine("usage: ReformerNative.BindingGenerator [--check] [REPOSITORY_ROOT]");
    return 2;
}

string root = Path.GetFullPath(rest.FirstOrDefault() ?? ".");
string header = Path.Combine(root, "native", "include", "reformer_native.h");
if (!File.Exists(header))
{
    Console.Error.WriteLine($"Expected the header at {header}, but there is no such file. Name the repository's root.");
    return 2;
}

try
{
    IReadOnlyDictionary<string, string> files = Bindings.Write(ClangFrontEnd.Parse(header));
    int different = 0;
    foreach ((string name, string text) in files)
    {
        string path = Path.Combine(root, name);
        if (!check)
        {
            Directory.CreateDirectory(Path.GetDirectoryName(path)!);
            File.WriteAllText(path, text);
            Console.WriteLine($"wrote {path}");
            continue;
        }

        string current = File.Exists(path) ? File.ReadAllText(path) : "";
        if (current != text)
        {
            different++;
            Console.Error.Write(Difference.Summary(name, current, text));
        }
    }

    foreach (string orphan in Bindings.Orphans(root, files))
    {
        if (!check)
        {
            File.Delete(Path.Combine(root, orphan));
            Console.WriteLine($"deleted {orphan}");
            continue;
        }

        different++;
        Console.Error.WriteLine($"{orphan}: nothing in the header stands behind it");
    }

    if (different > 0)
    {
        Console.Error.WriteLine(
            $"{different} of {files.Count} files differ from the header. Run ReformerNative.BindingGenerator without "
            + "--check.");
    }

    return different > 0 ? 1 : 0;
}
catch (Exception error) when (error is InvalidOperationException or NotSupportedException or IOException)
{
    Console.Error.WriteLine(error.Message);
    return 1;
}
