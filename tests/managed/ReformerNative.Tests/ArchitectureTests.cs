using System.Text.RegularExpressions;
using ReformerNative.Tensors;

namespace ReformerNative.Tests;

/// <summary>The boundaries between the rooms of the managed library.</summary>
public sealed partial class ArchitectureTests
{
    /// <summary>What each room may name, besides itself.</summary>
    private static readonly Dictionary<string, string[]> MayName = new()
    {
        ["Interop"] = [],
        ["Tensors"] = ["Interop"],
        ["Ops"] = ["Interop", "Tensors"],
        ["Checkpoints"] = ["Interop", "Tensors"], // system calls on files
        ["Data"] = ["Checkpoints"],
        ["Model"] = ["Tensors", "Ops", "Checkpoints", "Data"],
        ["Training"] = ["Tensors", "Ops", "Checkpoints", "Data", "Model"],
    };

    [TestCaseSource(nameof(RoomNames))]
    public void Room_Sources_NameOnlyTheRoomsTheyMay(string room)
    {
        string[] forbidden = [.. MayName.Keys.Except(MayName[room]).Where(r => r != room)];
        var violations = new List<string>();
        foreach (string file in Repository.Sources("managed", "ReformerNative", room))
        {
            string text = File.ReadAllText(Repository.PathOf(file));
            violations.AddRange(
                forbidden
                    .Where(r => Regex.IsMatch(text, $@"\bReformerNative\.{r}\b|\busing {r}\b"))
                    .Select(r => $"{file} names {r}")
            );
            violations.AddRange(
                Namespace()
                    .Matches(text)
                    .Select(m => m.Groups[1].Value)
                    .Where(name => name != $"ReformerNative.{room}")
                    .Select(name => $"{file} declares namespace {name}")
            );
        }

        Assert.That(violations, Is.Empty);
    }

    /// <summary>A permission that nobody needs is one too many.</summary>
    [TestCaseSource(nameof(RoomNames))]
    public void Room_NamesEveryRoomThatItMay(string room)
    {
        string all = string.Concat(
            Directory.EnumerateFiles(Repository.PathOf("managed", "ReformerNative", room), "*.cs")
                .Select(File.ReadAllText));
        Assert.That(
            MayName[room].Where(r => !all.Contains($"ReformerNative.{r}", StringComparison.Ordinal)), Is.Empty);
    }

    [Test]
    public void Library_Sources_LieInARoom() =>
        Assert.That(
            Repository
                .Sources("managed", "ReformerNative")
                .Where(f => !MayName.ContainsKey(f.Split(Path.DirectorySeparatorChar)[2])),
            Is.Empty
        );

    [Test]
    public void NativeImports_AreGeneratedAlone()
    {
        IEnumerable<string> importing = Repository.Sources("managed")
            .Where(f => !f.Contains("BindingGenerator", StringComparison.Ordinal))
            .Where(f => Regex.IsMatch(File.ReadAllText(Repository.PathOf(f)), @"\[\s*(LibraryImport|DllImport)\b"));
        Assert.That(importing, Is.Empty, "these files import native functions by hand");
    }

    /// <summary>
    /// Functions are looked up by hand to load the native library, and for a few calls of the system.
    /// </summary>
    [Test]
    public void NativeFunctions_AreLookedUpInTwoPlaces()
    {
        IEnumerable<string> looking = Repository.Sources("managed")
            .Where(f => File.ReadAllText(Repository.PathOf(f)).Contains("GetExport(", StringComparison.Ordinal));
        Assert.That(
            looking,
            Is.EqualTo((string[])
            [
                "managed/ReformerNative/Interop/NativeLoader.cs", "managed/ReformerNative/Interop/SystemCalls.cs",
            ]));
    }

    [Test]
    public void Classes_OfTheLibrary_AreSealedUnlessTheyAreBases()
    {
        Type[] types = typeof(Tensor).Assembly.GetTypes();
        IEnumerable<string?> open = types
            .Where(t => t.IsClass && !t.IsSealed && !t.IsAbstract && !t.Name.Contains('<', StringComparison.Ordinal))
            .Where(t =>
                t.Namespace?.StartsWith("ReformerNative", StringComparison.Ordinal) == true
                && !types.Any(other => other.BaseType == t)
            )
            .Select(t => t.FullName);
        Assert.That(open, Is.Empty);
    }

    [Test]
    public void Solution_ListsEveryProject()
    {
        string solution = File.ReadAllText(Repository.PathOf("ReformerNative.sln")).Replace('\\', '/');
        IEnumerable<string> projects = Directory.EnumerateDirectories(Repository.Root)
            .Where(folder => Path.GetFileName(folder) is not ("artifacts" or "build" or "runs" or ".git"))
            .SelectMany(folder => Directory.EnumerateFiles(folder, "*.csproj", SearchOption.AllDirectories))
            .Select(file => Path.GetRelativePath(Repository.Root, file).Replace('\\', '/'));
        Assert.That(
            projects.Where(p => !solution.Contains($"\"{p}\"", StringComparison.Ordinal)), Is.Empty,
            "add them with: dotnet sln add PROJECT");
    }

    /// <summary>
    /// ManagedCuda's package and licence are each user's choice, so its adapter is listed and not built.
    /// </summary>
    [Test]
    public void Solution_BuildsEveryProjectButTheAdapterOfManagedCuda([Values("Debug", "Release")] string configuration)
    {
        string solution = File.ReadAllText(Repository.PathOf("ReformerNative.sln"));
        IEnumerable<string> left = Project()
            .Matches(solution)
            .Where(m =>
                !solution.Contains($"{m.Groups[2].Value}.{configuration}|Any CPU.Build.0", StringComparison.Ordinal)
            )
            .Select(m => m.Groups[1].Value);
        Assert.That(left, Is.EqualTo((string[])["ReformerNative.ManagedCuda"]));
    }

    [Test]
    public void ManagedCuda_IsNamedByItsAdapterAlone()
    {
        IEnumerable<string> naming = Repository.Sources("managed")
            .Where(f => !f.StartsWith("managed/ReformerNative.ManagedCuda/", StringComparison.Ordinal))
            .Where(f => File.ReadAllText(Repository.PathOf(f)).Contains("ManagedCuda", StringComparison.Ordinal));
        Assert.That(naming, Is.Empty);
    }

    /// <summary>
    /// The adapter is not built here; whoever builds it with <c>-p:RfnExample=true</c> compiles the example of its
    /// README.
    /// </summary>
    [Test]
    public void ManagedCuda_ExampleIsTheOneInItsReadme()
    {
        string[] source = File.ReadAllLines(Repository.PathOf("managed", "ReformerNative.ManagedCuda", "Example.cs"));
        string example = string.Join(
            '\n',
            source
                .SkipWhile(line => !line.EndsWith("// README: begin", StringComparison.Ordinal))
                .Skip(1)
                .TakeWhile(line => !line.EndsWith("// README: end", StringComparison.Ordinal))
        );
        Assert.That(example, Is.Not.Empty);
        Assert.That(
            File.ReadAllText(Repository.PathOf("managed", "ReformerNative.ManagedCuda", "README.md")),
            Does.Contain(example));
    }

    [Test]
    public void Sources_Lines_AreAtMost120Columns()
    {
        string[] tooLong =
        [
            .. new[] { "managed", "tests" }
                .SelectMany(folder => Repository.Sources(folder))
                .SelectMany(file =>
                    File.ReadLines(Repository.PathOf(file)).Select((line, i) => (Place: $"{file}:{i + 1}", line.Length))
                )
                .Where(line => line.Length > 120)
                .Select(line => $"{line.Place}: {line.Length}"),
        ];
        Assert.That(tooLong, Is.Empty, string.Join('\n', tooLong));
    }

    private static string[] RoomNames() => [.. MayName.Keys];

    [GeneratedRegex(@"= ""([\w.]+)"", ""[^""]+\.csproj"", ""(\{[-0-9A-F]+\})""")]
    private static partial Regex Project();

    [GeneratedRegex(@"^namespace ([\w.]+)", RegexOptions.Multiline)]
    private static partial Regex Namespace();
}
