using ReformerNative.BindingGenerator;

// bindings [--check] [REPOSITORY_ROOT]
// Writes managed/ReformerNative/Interop/*.g.cs from native/include/reformer_native.h, or with --check only compares.
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
string folder = Path.Combine(root, "managed", "ReformerNative", "Interop");
if (!File.Exists(header))
{
    Console.Error.WriteLine($"Expected the header at {header}, but there is no such file. Name the repository's root.");
    return 2;
}

try
{
    IReadOnlyDictionary<string, string> files = new CSharpWriter(ClangFrontEnd.Parse(header)).Write();
    int different = 0;
    foreach ((string name, string text) in files)
    {
        string path = Path.Combine(folder, name);
        if (!check)
        {
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

    if (different > 0)
    {
        Console.Error.WriteLine(
            $"{different} of {files.Count} files differ from the header. Run ReformerNative.BindingGenerator without "
                + "--check."
        );
    }

    return different > 0 ? 1 : 0;
}
catch (Exception error) when (error is InvalidOperationException or NotSupportedException or IOException)
{
    Console.Error.WriteLine(error.Message);
    return 1;
}
