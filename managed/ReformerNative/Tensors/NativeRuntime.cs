using ReformerNative.Interop;

namespace ReformerNative.Tensors;

/// <summary>Facts about the loaded native library and the devices it sees.</summary>
public static unsafe class NativeRuntime
{
    private const int DescriptionCapacity = 4096; // bytes; one device's JSON object is a few hundred

    /// <summary>Version of the native library, such as <c>0.1.0</c>.</summary>
    public static string Version
    {
        get
        {
            NativeLoader.EnsureLoaded();
            return NativeError.Text(NativeMethods.rfn_version());
        }
    }

    /// <summary>
    /// One JSON object: version, compiler, simd (the instruction set in use), simd_available, blas (name, version,
    /// kernel), backends.
    /// </summary>
    public static string BuildInfo
    {
        get
        {
            NativeLoader.EnsureLoaded();
            return NativeError.Text(NativeMethods.rfn_build_info());
        }
    }

    /// <summary>
    /// Native contexts, streams, events and buffers that exist now; 0 when everything has been disposed.
    /// </summary>
    public static long LiveObjects
    {
        get
        {
            NativeLoader.EnsureLoaded();
            return NativeMethods.rfn_live_objects();
        }
    }

    /// <summary>Number of devices of a kind.</summary>
    /// <param name="type">The kind.</param>
    /// <param name="reason">When there is none, why; else empty.</param>
    /// <returns>The number.</returns>
    public static int DeviceCount(DeviceType type, out string reason)
    {
        NativeLoader.EnsureLoaded();
        int count = 0;
        NativeError.ThrowIfFailed(NativeMethods.rfn_device_count((int)type, &count));
        reason = count == 0 ? NativeError.Text(NativeMethods.rfn_last_error()) : "";
        return count;
    }

    /// <summary>One JSON object about a device: name, memory_bytes and more.</summary>
    /// <param name="device">The device.</param>
    /// <returns>The JSON text.</returns>
    public static string Describe(Device device)
    {
        NativeLoader.EnsureLoaded();
        byte* text = stackalloc byte[DescriptionCapacity];
        NativeError.ThrowIfFailed(
            NativeMethods.rfn_device_describe((int)device.Type, device.Index, text, DescriptionCapacity));
        return NativeError.Text(text);
    }
}
