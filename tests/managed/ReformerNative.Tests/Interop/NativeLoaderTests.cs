using System.Diagnostics;
using System.Runtime.InteropServices;
using ReformerNative.Interop;

namespace ReformerNative.Tests.Interop;

public sealed class NativeLoaderTests
{
    public static IEnumerable<string> FirstCalls => Program.FirstCalls.Keys;

    [TestCaseSource(nameof(FirstCalls))]
    public void AnyCall_AsTheFirstOfAProcess_FindsTheLibrary(string call)
    {
        var start = new ProcessStartInfo("dotnet", ["exec", typeof(Program).Assembly.Location, call])
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        using Process child = Process.Start(start)!;
        Task<string> errors = child.StandardError.ReadToEndAsync();
        string output = child.StandardOutput.ReadToEnd().Trim();
        child.WaitForExit();
        Assert.That(child.ExitCode, Is.Zero, errors.GetAwaiter().GetResult());
        Assert.That(output, Is.Not.Empty);
    }

    [Test]
    public void Load_NothingFits_ListsEveryPathWithItsReason()
    {
        string notALibrary = Path.GetTempFileName();
        try
        {
            File.WriteAllText(notALibrary, "text");
            var error = Assert.Throws<DllNotFoundException>(() =>
                NativeLoader.Load(
                    ["/no/such/folder/libreformer_native.so", notALibrary, "libno-such-library-anywhere.so"])
            );
            Assert.That(error!.Message, Does.Contain("/no/such/folder/libreformer_native.so: no such file"));
            Assert.That(
                error.Message, Does.Contain(notALibrary + ": ").And.Not.Contain(notALibrary + ": no such file"));
            Assert.That(error.Message, Does.Contain("libno-such-library-anywhere.so: "));
            Assert.That(error.Message, Does.Contain("RFN_NATIVE_PATH"));
        }
        finally
        {
            File.Delete(notALibrary);
        }
    }

    [Test]
    public void Candidates_WithoutVariable_AreBesideTheAppThenRuntimesThenTheSystem()
    {
        string rid = RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? "linux-arm64" : "linux-x64";
        Assert.That(
            NativeLoader.Candidates(null, "/app/"),
            Is.EqualTo(
                new[]
                {
                    "/app/libreformer_native.so",
                    $"/app/runtimes/{rid}/native/libreformer_native.so",
                    "libreformer_native.so",
                }
            )
        );
    }

    [Test]
    public void Candidates_FoldersThatAreMissingOrTheSame_AreTriedOnce() =>
        Assert.That(
            NativeLoader.Candidates(null, "/app/", null, "/app/", "", "/plugins/").Where(
                path => !path.Contains("runtimes", StringComparison.Ordinal)),
            Is.EqualTo(
                new[] { "/app/libreformer_native.so", "/plugins/libreformer_native.so", "libreformer_native.so" }));

    [Test]
    public void Load_MissingDependency_NamesIt()
    {
        using var directory = new TemporaryDirectory();
        string library = Compile(directory, "libreformer_native.so", Compile(directory, "libonce-there.so"));
        File.Delete(Path.Combine(directory.Path, "libonce-there.so"));
        var error = Assert.Throws<DllNotFoundException>(() => NativeLoader.Load([library]));
        Assert.That(
            error!.Message,
            Does.Contain(library)
                .And.Contain("libonce-there.so: cannot open shared object file")
                .And.Not.Contain("LD_DEBUG"));
    }

    [Test]
    public void Load_LibraryOfSomethingElse_SaysSo()
    {
        using var directory = new TemporaryDirectory();
        string library = Compile(directory, "libreformer_native.so");
        var error = Assert.Throws<DllNotFoundException>(() => NativeLoader.Load([library]));
        Assert.That(error!.Message, Does.Contain($"{library}: a library of something else"));
    }

    [Test]
    public void Command_LibraryOfSomethingElse_IsASentence()
    {
        using var directory = new TemporaryDirectory();
        string library = Compile(directory, "libother.so");
        (int exitCode, _, string errors) = Repository.Run(
            "env", $"{NativeLoader.PathVariable}={library}", "dotnet",
            Path.Combine(AppContext.BaseDirectory, "reformer.dll"), "info");
        Assert.That(exitCode, Is.EqualTo(1));
        Assert.That(
            errors,
            Does.StartWith("reformer: The native library of ReformerNative could not be loaded.")
                .And.Contain(library));
    }

    [Test]
    public void Candidates_WithVariable_AreThatFileOrFolderAlone()
    {
        string folder = Path.GetTempPath();
        Assert.That(
            NativeLoader.Candidates(folder, "/app/"),
            Is.EqualTo(new[] { Path.Combine(folder, "libreformer_native.so") }));
        Assert.That(NativeLoader.Candidates("/somewhere/else.so", "/app/"), Is.EqualTo(new[] { "/somewhere/else.so" }));
    }

    [TestCase(NativeConstants.RFN_ABI_MAJOR + 1, 0)]
    [TestCase(NativeConstants.RFN_ABI_MAJOR - 1, 7)]
    public void CheckVersion_OtherMajor_Throws(int major, int minor)
    {
        var error = Assert.Throws<NotSupportedException>(() =>
            NativeLoader.CheckVersion(((uint)major << 16) | (uint)minor, "/lib/x.so")
        );
        Assert.That(
            error!.Message,
            Does.Contain("/lib/x.so")
                .And.Contain($"{major}.{minor}")
                .And.Contain($"{NativeConstants.RFN_ABI_MAJOR}.{NativeConstants.RFN_ABI_MINOR}")
        );
    }

    [Test]
    public void CheckVersion_LaterMinor_Passes() =>
        Assert.DoesNotThrow(() =>
            NativeLoader.CheckVersion((NativeConstants.RFN_ABI_MAJOR << 16) | (NativeConstants.RFN_ABI_MINOR + 1), "x")
        );

    [Test]
    public void EnsureLoaded_Version_IsTheHeaders()
    {
        NativeLoader.EnsureLoaded();
        Assert.That(
            NativeMethods.rfn_abi_version(),
            Is.EqualTo((NativeConstants.RFN_ABI_MAJOR << 16) | NativeConstants.RFN_ABI_MINOR));
    }

    /// <summary>An empty library, linked with others.</summary>
    private static string Compile(TemporaryDirectory directory, string name, params string[] dependencies)
    {
        string path = Path.Combine(directory.Path, name);
        (int exitCode, _, string errors) = Repository.Run(
            "g++",
            [
                "-shared", "-Wl,--no-as-needed", "-o", path, "-x", "c++", "/dev/null", "-x", "none", .. dependencies,
            ]);
        Assert.That(exitCode, Is.Zero, errors);
        return path;
    }
}
