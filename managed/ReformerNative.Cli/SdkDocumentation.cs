using System.Runtime.InteropServices;

namespace ReformerNative.Cli;

/// <summary>
/// The API documentation that the installed .NET SDK ships: tens of megabytes of English and markup, at hand wherever
/// this runs.
/// </summary>
internal static class SdkDocumentation
{
    public const string Pattern = "*.xml";

    /// <summary>Folders of the newest reference packs.</summary>
    /// <exception cref="FileNotFoundException">No SDK with documentation was found; the message lists the
    /// places.</exception>
    public static IReadOnlyList<string> Folders()
    {
        var tried = new List<string>();
        foreach (string root in Roots().Distinct(StringComparer.Ordinal))
        {
            string packs = Path.Combine(root, "packs");
            tried.Add(packs);
            if (!Directory.Exists(packs))
            {
                continue;
            }

            List<string> folders =
            [
                .. Directory.EnumerateDirectories(packs).Order(StringComparer.Ordinal).Select(Newest).OfType<string>(),
            ];
            if (folders.Count > 0)
            {
                return folders;
            }
        }

        throw new FileNotFoundException(
            $"expected the .NET SDK's XML documentation in {string.Join(" or ", tried)}, found none; "
                + "name text to train on with --data"
        );
    }

    private static IEnumerable<string> Roots()
    {
        // The runtime is ROOT/shared/Microsoft.NETCore.App/VERSION.
        if (Path.GetFullPath(Path.Combine(RuntimeEnvironment.GetRuntimeDirectory(), "..", "..", "..")) is var running)
        {
            yield return running;
        }

        if (Environment.GetEnvironmentVariable("DOTNET_ROOT") is { Length: > 0 } named)
        {
            yield return named;
        }

        yield return "/usr/share/dotnet";
        yield return "/usr/lib/dotnet";
        yield return Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile), ".dotnet");
    }

    /// <summary>The "ref" folder of a pack's newest version that has documentation.</summary>
    private static string? Newest(string pack) =>
        Directory
            .EnumerateDirectories(pack)
            .Select(folder => (Path: Path.Combine(folder, "ref"), Version: VersionOf(Path.GetFileName(folder))))
            .Where(item =>
                Directory.Exists(item.Path)
                && Directory.EnumerateFiles(item.Path, Pattern, SearchOption.AllDirectories).Any()
            )
            .OrderByDescending(item => item.Version)
            .Select(item => item.Path)
            .FirstOrDefault();

    private static Version VersionOf(string name) =>
        Version.TryParse(name.Split('-')[0], out Version? version) ? version : new Version();
}
