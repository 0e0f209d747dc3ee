using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;

namespace ReformerNative.BindingGenerator;

/// <summary>
/// Reads a C header with the clang compiler: declarations from its JSON syntax tree, macros from its preprocessor. The
/// only class that knows clang; another parser replaces it by returning the same <see cref="Header"/>.
/// </summary>
internal static partial class ClangFrontEnd
{
    private const string Prefix = "rfn_";
    private static readonly string[] Compilers =
    [
        "clang", "clang-19", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14",
    ];

    /// <summary>Parses the header at <paramref name="path"/>.</summary>
    public static Header Parse(string path)
    {
        string source = Encoding.Latin1.GetString(File.ReadAllBytes(path)); // clang counts bytes
        string compiler = FindCompiler();
        string macros = Run(compiler, "-E", "-dD", "-x", "c", "-std=c99", path);
        string tree = Run(
            compiler, "-Xclang", "-ast-dump=json", "-fsyntax-only", "-fparse-all-comments", "-x", "c", "-std=c99",
            path);
        var constants = new List<Constant>();
        foreach (Match match in IntegerMacro().Matches(macros))
        {
            constants.Add(
                new Constant(match.Groups[1].Value, long.Parse(match.Groups[2].Value, CultureInfo.InvariantCulture)));
        }

        using JsonDocument document = JsonDocument.Parse(tree);
        var structures = new List<Structure>();
        var functions = new List<Function>();
        var records = new List<string>();
        foreach (
            JsonElement declaration in Children(document.RootElement)
                .Where(d => Name(d).StartsWith(Prefix, StringComparison.Ordinal))
        )
        {
            switch (Kind(declaration))
            {
                case "RecordDecl":
                    records.Add(Name(declaration));
                    if (declaration.TryGetProperty("completeDefinition", out _))
                    {
                        structures.Add(new Structure(
                            Name(declaration),
                            Comment(declaration, source),
                            [.. OfKind(declaration, "FieldDecl").Select(f => ReadField(f, source))]));
                    }

                    break;
                case "FunctionDecl":
                    string type = Type(declaration);
                    functions.Add(new Function(
                        Name(declaration),
                        type[..type.IndexOf('(', StringComparison.Ordinal)].Trim(),
                        Comment(declaration, source),
                        [.. OfKind(declaration, "ParmVarDecl").Select(p => new Parameter(Name(p), Type(p)))]));
                    break;
            }
        }

        return new Header(constants, records.Except(structures.Select(s => s.Name)).ToHashSet(), structures, functions);
    }

    private static Field ReadField(JsonElement field, string source)
    {
        Match array = ArrayType().Match(Type(field));
        return array.Success
            ? new Field(
                Name(field), array.Groups[1].Value, int.Parse(array.Groups[2].Value, CultureInfo.InvariantCulture),
                Comment(field, source))
            : new Field(Name(field), Type(field), null, Comment(field, source));
    }

    private static JsonElement.ArrayEnumerator Children(JsonElement node) =>
        node.TryGetProperty("inner", out JsonElement inner) ? inner.EnumerateArray() : default;

    private static IEnumerable<JsonElement> OfKind(JsonElement node, string kind) =>
        Children(node).Where(c => Kind(c) == kind);

    private static string Kind(JsonElement node) =>
        node.TryGetProperty("kind", out JsonElement kind) ? kind.GetString()! : "";

    private static string Name(JsonElement node) =>
        node.TryGetProperty("name", out JsonElement name) ? name.GetString()! : "";

    private static string Type(JsonElement node) => node.GetProperty("type").GetProperty("qualType").GetString()!;

    /// <summary>
    /// The comment attached to a declaration, without its stars; empty when there is none. Read from the source,
    /// because clang's tree splits the text at every character that HTML or a documentation command could begin with.
    /// </summary>
    private static string Comment(JsonElement node, string source)
    {
        foreach (JsonElement comment in OfKind(node, "FullComment"))
        {
            JsonElement range = comment.GetProperty("range");
            int begin = range.GetProperty("begin").GetProperty("offset").GetInt32();
            int end = range.GetProperty("end").GetProperty("offset").GetInt32();
            return string.Join(
                    '\n',
                    source[begin..(end + 1)].Split('\n').Select(line => line.Trim().TrimStart('*').Trim())
                )
                .Trim();
        }

        return "";
    }

    private static string FindCompiler()
    {
        string[] folders = (Environment.GetEnvironmentVariable("PATH") ?? "").Split(Path.PathSeparator);
        return Compilers.FirstOrDefault(name => folders.Any(folder => File.Exists(Path.Combine(folder, name))))
            ?? throw new InvalidOperationException($"No clang found in PATH; tried {string.Join(", ", Compilers)}.");
    }

    private static string Run(string program, params string[] arguments)
    {
        try
        {
            var start = new ProcessStartInfo(program, arguments)
            {
                RedirectStandardOutput = true,
                RedirectStandardError = true,
            };
            using Process process = Process.Start(start)!;
            Task<string> errors = process.StandardError.ReadToEndAsync();
            string output = process.StandardOutput.ReadToEnd();
            process.WaitForExit();
            return process.ExitCode == 0
                ? output
                : throw new InvalidOperationException(
                    $"{program} ended with code {process.ExitCode}:\n{errors.GetAwaiter().GetResult()}");
        }
        catch (Win32Exception error)
        {
            throw new InvalidOperationException($"{program} could not be started: {error.Message}", error);
        }
    }

    [GeneratedRegex(@"^#define (RFN_\w+) (-?\d+)\s*$", RegexOptions.Multiline)]
    private static partial Regex IntegerMacro();

    [GeneratedRegex(@"^(.+)\[(\d+)\]$")]
    private static partial Regex ArrayType();
}
