using System.Runtime.InteropServices;
using ReformerNative.Tensors;

namespace ReformerNative.Tests;

/// <summary>
/// The CUDA backend with its kernels run by the CPU, made as unforgiving as it can be: work of a stream runs only when
/// something waits for it, and host code that touches device memory faults. Where its plug-in was not built, tests are
/// skipped with the reason.
/// </summary>
[SetUpFixture]
public sealed partial class CudaOnHost
{
    /// <summary>Names in native/cuda_on_host/control.h. The command's processes inherit them.</summary>
    private static readonly string[] Settings = ["RFN_CUDA_ON_HOST_LATE_STREAMS", "RFN_CUDA_ON_HOST_HIDE_MEMORY"];

    // The layer reads its settings once, with getenv, which does not see what .NET sets.
    [OneTimeSetUp]
    public void BeUnforgiving()
    {
        foreach (string name in Settings)
        {
            Assert.That(SetEnvironment(name, "1", overwrite: 0), Is.Zero);
            Environment.SetEnvironmentVariable(name, Environment.GetEnvironmentVariable(name) ?? "1");
        }
    }

    /// <summary>Opens it, or skips the test.</summary>
    internal static ReformerContext Open(Precision precision = Precision.Float32)
    {
        Require();
        return new ReformerContext(Device.CudaOnHost) { Precision = precision };
    }

    /// <summary>Skips the test where it is not there.</summary>
    internal static void Require()
    {
        if (NativeRuntime.DeviceCount(DeviceType.CudaOnHost, out string reason) == 0)
        {
            Assert.Ignore(reason);
        }
    }

    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    [LibraryImport("libc", EntryPoint = "setenv", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int SetEnvironment(string name, string value, int overwrite);
}
