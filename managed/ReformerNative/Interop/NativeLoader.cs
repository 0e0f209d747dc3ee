using System.Diagnostics.CodeAnalysis;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text;

namespace ReformerNative.Interop;

/// <summary>
/// Finds and loads the native library, once per process. Every public way in calls <see cref="EnsureLoaded"/>.
/// </summary>
internal static class NativeLoader
{
    /// <summary>The name that the imports use.</summary>
    internal const string LibraryName = "reformer_native";

    /// <summary>
    /// Environment variable that names the library file or its folder. When it is set nothing else is tried.
    /// </summary>
    internal const string PathVariable = "RFN_NATIVE_PATH";

    private static readonly Lock Gate = new();
    private static nint library;
    private static bool resolverSet;

    // The runtime's own identifier may name a distribution (debian.12-x64); packages name the system and the
    // architecture.
    private static string PortableRid =>
        (OperatingSystem.IsWindows() ? "win-" : OperatingSystem.IsMacOS() ? "osx-" : "linux-")
        + (RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? "arm64" : "x64");

    /// <summary>
    /// Loads the library and compares its ABI version with the one these bindings were generated from.
    /// </summary>
    /// <exception cref="DllNotFoundException">No candidate could be loaded; the message lists each with the system's
    /// reason.</exception>
    /// <exception cref="NotSupportedException">The library has another ABI version.</exception>
    internal static void EnsureLoaded()
    {
        if (Volatile.Read(ref library) != 0)
        {
            return;
        }

        lock (Gate)
        {
            if (library == 0)
            {
                nint loaded = Load(Candidates(Environment.GetEnvironmentVariable(PathVariable), Folders()));
                if (!resolverSet)
                {
                    NativeLibrary.SetDllImportResolver(typeof(NativeLoader).Assembly, Resolve);
                    resolverSet = true;
                }

                Volatile.Write(ref library, loaded);
            }
        }
    }

    /// <summary>
    /// Where the library may be, in the order of search. The last entry is a bare name: the system's own search.
    /// </summary>
    internal static IReadOnlyList<string> Candidates(string? configured, params ReadOnlySpan<string?> folders)
    {
        string file = OperatingSystem.IsWindows() ? "reformer_native.dll"
            : OperatingSystem.IsMacOS() ? "libreformer_native.dylib"
            : "libreformer_native.so";
        if (!string.IsNullOrEmpty(configured))
        {
            string path = Path.GetFullPath(configured);
            return [Directory.Exists(path) ? Path.Combine(path, file) : path];
        }

        var candidates = new List<string>();
        foreach (string? folder in folders)
        {
            if (!string.IsNullOrEmpty(folder))
            {
                candidates.Add(Path.Combine(folder, file));
                candidates.Add(Path.Combine(folder, "runtimes", PortableRid, "native", file));
            }
        }

        return [.. candidates.Distinct(StringComparer.Ordinal), file];
    }

    /// <summary>
    /// Loads the first candidate that is a library of this project; what is wrong with the others is said only when
    /// none is.
    /// </summary>
    internal static nint Load(IReadOnlyList<string> candidates)
    {
        var tried = new StringBuilder();
        foreach (string candidate in candidates)
        {
            if (Open(candidate, out nint loaded) is not string reason)
            {
                return loaded;
            }

            tried.Append("\n  ").Append(candidate).Append(": ").Append(reason);
        }

        throw new DllNotFoundException(
            $"The native library of ReformerNative could not be loaded. Tried:{tried}\n"
            + $"Set {PathVariable} to the library or its folder to name another place.");
    }

    /// <summary>
    /// Refuses a library whose ABI these bindings do not fit: another major version, or an older minor one.
    /// </summary>
    internal static void CheckVersion(uint version, string path)
    {
        uint major = version >> 16;
        uint minor = version & 0xffff;
        if (major != NativeConstants.RFN_ABI_MAJOR || minor < NativeConstants.RFN_ABI_MINOR)
        {
            throw new NotSupportedException(
                $"{path} has ABI version {major}.{minor}; this assembly needs "
                    + $"{NativeConstants.RFN_ABI_MAJOR}.{NativeConstants.RFN_ABI_MINOR}"
                + $" or a later {NativeConstants.RFN_ABI_MAJOR}.x.");
        }
    }

    /// <summary>Loads one candidate, or says why it is not the library.</summary>
    private static string? Open(string candidate, out nint loaded)
    {
        bool isPath = Path.IsPathRooted(candidate);
        try
        {
            loaded = isPath
                ? NativeLibrary.Load(candidate)
                : NativeLibrary.Load(candidate, typeof(NativeLoader).Assembly, DllImportSearchPath.SafeDirectories);
        }
        catch (Exception error) when (error is DllNotFoundException or BadImageFormatException)
        {
            loaded = 0;
            return isPath && !File.Exists(candidate) ? "no such file" : Cause(error.Message);
        }

        if (!NativeLibrary.TryGetExport(loaded, nameof(NativeMethods.rfn_abi_version), out nint version))
        {
            NativeLibrary.Free(loaded);
            return $"a library of something else: it has no function {nameof(NativeMethods.rfn_abi_version)}";
        }

        // Asked through the loaded handle, because the imports are bound for good at their first call.
        CheckVersion(Call(version), candidate);
        return null;
    }

    private static unsafe uint Call(nint function) => ((delegate* unmanaged<uint>)function)();

    /// <summary>
    /// What the system said. The runtime's message is a line of advice, followed by a line of the system for each file
    /// that it tried.
    /// </summary>
    private static string Cause(string message)
    {
        string[] lines = message.Split('\n', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries);
        return string.Join("; ", lines.Length > 1 ? lines[1..].Distinct() : lines);
    }

    /// <summary>
    /// Folders that a publish may put the library into: the app's, this assembly's (an app may load it from elsewhere),
    /// and that of the program, which differ when one file holds the app and is unpacked when it starts.
    /// </summary>
    [UnconditionalSuppressMessage(
        "SingleFile", "IL3000", Justification = "An assembly in a bundle has no place of its own; others remain.")]
    private static string?[] Folders() =>
    [
        AppContext.BaseDirectory,
        Folder(typeof(NativeLoader).Assembly.Location),
        Folder(Environment.ProcessPath),
    ];

    // Ends with a separator, as the app's base directory does, so that a folder is not tried twice.
    private static string? Folder(string? file) =>
        Path.GetDirectoryName(file) is { Length: > 0 } folder ? Path.Join(folder, "/") : null;

    private static nint Resolve(string name, Assembly assembly, DllImportSearchPath? searchPath) =>
        name == LibraryName ? library : 0;
}
