using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using ReformerNative.Interop;

namespace ReformerNative.Tensors;

/// <summary>Kinds of devices.</summary>
public enum DeviceType
{
    /// <summary>The host's processors.</summary>
    Cpu = NativeConstants.RFN_DEVICE_CPU,

    /// <summary>An NVIDIA GPU.</summary>
    Cuda = NativeConstants.RFN_DEVICE_CUDA,

    /// <summary>
    /// For tests and diagnosis: the CUDA backend with its kernels run by the host's processors, thread by thread and
    /// very slowly. Only where its plug-in was built.
    /// </summary>
    CudaOnHost = NativeConstants.RFN_DEVICE_CUDA_ON_HOST,
}

/// <summary>A device that ops run on. The default value is the CPU.</summary>
/// <param name="Type">The kind of device.</param>
/// <param name="Index">Its number among the devices of its kind, from 0.</param>
public readonly record struct Device(DeviceType Type, int Index)
{
    private const string OnHost = "cuda-on-host";

    /// <summary>The host's processors.</summary>
    public static Device Cpu => default;

    /// <summary>The simulated GPU of <see cref="DeviceType.CudaOnHost"/>.</summary>
    public static Device CudaOnHost => new(DeviceType.CudaOnHost, 0);

    /// <summary>The NVIDIA GPU with the given number.</summary>
    /// <param name="index">From 0.</param>
    /// <returns>The device.</returns>
    public static Device Cuda(int index = 0) => new(DeviceType.Cuda, index);

    /// <summary>Reads <c>cpu</c>, <c>cuda</c>, <c>cuda:1</c> or <c>cuda-on-host</c>.</summary>
    /// <param name="text">The text.</param>
    /// <param name="device">The device that the text names.</param>
    /// <returns>Whether the text names a device.</returns>
    public static bool TryParse([NotNullWhen(true)] string? text, out Device device)
    {
        device = text is OnHost ? CudaOnHost : Cpu;
        if (text is "cpu" or OnHost)
        {
            return true;
        }

        int index = 0;
        if (text is "cuda"
            || (text is not null && text.StartsWith("cuda:", StringComparison.Ordinal)
                && int.TryParse(text.AsSpan(5), NumberStyles.None, CultureInfo.InvariantCulture, out index)))
        {
            device = Cuda(index);
            return true;
        }

        return false;
    }

    /// <summary>The name that <see cref="TryParse"/> reads.</summary>
    /// <returns>For example <c>cpu</c> or <c>cuda:0</c>.</returns>
    public override string ToString() => Type switch
    {
        DeviceType.Cpu => "cpu",
        DeviceType.CudaOnHost => OnHost,
        _ => $"cuda:{Index}",
    };
}
