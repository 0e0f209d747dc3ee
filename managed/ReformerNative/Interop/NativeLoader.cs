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
                nint loaded = Load(
                    Candidates(Environment.GetEnvironmentVariable(PathVariable), AppContext.BaseDirectory),
                    out string path);
                CheckVersion(Version(loaded), path);
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
    internal static IReadOnlyList<string> Candidates(string? configured, string baseDirectory)
    {
        string file = OperatingSystem.IsWindows() ? "reformer_native.dll"
            : OperatingSystem.IsMacOS() ? "libreformer_native.dylib"
            : "libreformer_native.so";
        if (!string.IsNullOrEmpty(configured))
        {
            string path = Path.GetFullPath(configured);
            return [Directory.Exists(path) ? Path.Combine(path, file) : path];
        }

        return
        [
            Path.Combine(baseDirectory, file),
            Path.Combine(baseDirectory, "runtimes", PortableRid, "native", file),
            file,
        ];
    }

    /// <summary>Loads the first candidate that the system accepts.</summary>
    internal static nint Load(IReadOnlyList<string> candidates, out string path)
    {
        var tried = new StringBuilder();
        foreach (string candidate in candidates)
        {
            try
            {
                path = candidate;
                return Path.IsPathRooted(candidate)
                    ? NativeLibrary.Load(candidate)
                    : NativeLibrary.Load(candidate, typeof(NativeLoader).Assembly, DllImportSearchPath.SafeDirectories);
            }
            catch (Exception error) when (error is DllNotFoundException or BadImageFormatException)
            {
                string reason =
                    Path.IsPathRooted(candidate) && !File.Exists(candidate) ? "no such file" : FirstLine(error.Message);
                tried.Append("\n  ").Append(candidate).Append(": ").Append(reason);
            }
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

    // Asked through the loaded handle, because the imports are bound for good at their first call.
    private static unsafe uint Version(nint handle) =>
        ((delegate* unmanaged<uint>)NativeLibrary.GetExport(handle, nameof(NativeMethods.rfn_abi_version)))();

    private static nint Resolve(string name, Assembly assembly, DllImportSearchPath? searchPath) =>
        name == LibraryName ? library : 0;

    private static string FirstLine(string text) => text.Split('\n', 2)[0].Trim();
}
