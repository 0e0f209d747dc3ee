using ReformerNative.Tensors;

namespace ReformerNative.ManagedCuda;

/// <summary>
/// Ops of ReformerNative on memory and streams of ManagedCuda. Nothing is copied and nothing changes hands: a context
/// or a view that is made here owns neither the stream nor the memory below it. Both must outlive the work that uses
/// them, so dispose in this order: the <see cref="ReformerContext"/>, its stream, the variables, the
/// <see cref="PrimaryContext"/>; and synchronise before the variables.
/// </summary>
/// <remarks>
/// The CUDA runtime, and with it this library, works in the primary context of a device. A context made by <c>new
/// CudaContext()</c> is another: it has an address space of its own, and its memory and streams are refused here. The
/// primary context must be current (<see cref="CudaContext.SetCurrent"/>) on every thread that calls ops.
/// </remarks>
public static class ManagedCudaExtensions
{
    /// <summary>Makes ops run on a stream of ManagedCuda, in order with everything else that is given to it.</summary>
    /// <param name="primary">The primary context of the device, which must be current on this thread.</param>
    /// <param name="stream">A stream of that context; null for its default stream. It must outlive the result.</param>
    /// <returns>The context, to be disposed before the stream.</returns>
    /// <exception cref="InvalidOperationException">Another context is current, or the stream belongs to another
    /// one.</exception>
    /// <exception cref="NotSupportedException">The CUDA plug-in of ReformerNative cannot be loaded; the message says
    /// why.</exception>
    public static ReformerContext OpenReformer(this PrimaryContext primary, CudaStream? stream = null)
    {
        ArgumentNullException.ThrowIfNull(primary);
        RequireCurrent(primary.Context, primary.DeviceId);
        if (stream is not null)
        {
            CUcontext owner = default;
            Check(DriverAPINativeMethods.Streams.cuStreamGetCtx(stream.Stream, ref owner));
            if (owner.Pointer != primary.Context.Pointer)
            {
                throw new InvalidOperationException(
                    $"stream: expected one of the primary context of device {primary.DeviceId}, found one of another "
                        + "context"
                );
            }
        }

        return ReformerContext.OnStream(Device.Cuda(primary.DeviceId), stream?.Stream.Pointer ?? 0);
    }

    /// <summary>The memory of a variable as an argument of ops.</summary>
    /// <typeparam name="T">float, double, int, long or byte.</typeparam>
    /// <param name="variable">Device memory; it must not be disposed while work that uses the view is in
    /// flight.</param>
    /// <param name="context">The context whose ops use it.</param>
    /// <param name="shape">Sizes of the axes; the variable has at least as many elements.</param>
    /// <returns>The view.</returns>
    /// <exception cref="ArgumentException">The variable is too small, or its memory belongs to another context or
    /// device.</exception>
    /// <exception cref="InvalidOperationException">Another context is current on this thread.</exception>
    public static TensorView AsView<T>(this CudaDeviceVariable<T> variable, ReformerContext context, TensorShape shape)
        where T : unmanaged
    {
        ArgumentNullException.ThrowIfNull(variable);
        ArgumentNullException.ThrowIfNull(context);
        if (context.Device.Type != DeviceType.Cuda)
        {
            throw new ArgumentException(
                $"context: expected one of an NVIDIA GPU, found {context.Device}", nameof(context));
        }

        CUcontext primary = PrimaryOf(context.Device.Index);
        RequireCurrent(primary, context.Device.Index);
        CUdeviceptr pointer = variable.DevicePointer;
        CUcontext owner = default; // stays zero for memory of a pool, which belongs to no context
        CUResult known = DriverAPINativeMethods.MemoryManagement.cuPointerGetAttribute(
            ref owner, CUPointerAttribute.Context, pointer);
        int device = -1;
        Check(
            DriverAPINativeMethods.MemoryManagement.cuPointerGetAttribute(
                ref device, CUPointerAttribute.DeviceOrdinal, pointer)
        );
        if (device != context.Device.Index
            || (known == CUResult.Success && owner.Pointer != 0 && owner.Pointer != primary.Pointer))
        {
            throw new ArgumentException(
                $"variable: expected memory of the primary context of device {context.Device.Index}, "
                    + (
                        device != context.Device.Index
                            ? $"found memory of device {device}"
                            : "found memory of another context"
                    ),
                nameof(variable)
            );
        }

        long bytes = checked((long)(ulong)variable.SizeInBytes);
        return Tensor.Wrap(context, checked((nint)(ulong)pointer), bytes, shape, DTypes.Of<T>());
    }

    private static void RequireCurrent(CUcontext primary, int device)
    {
        CUcontext current = default;
        Check(DriverAPINativeMethods.ContextManagement.cuCtxGetCurrent(ref current));
        if (current.Pointer != primary.Pointer)
        {
            throw new InvalidOperationException(
                $"expected the primary context of device {device} to be current on this thread "
                    + "(PrimaryContext.SetCurrent), found "
                + (current.Pointer == 0 ? "none" : "another one"));
        }
    }

    // Retained and released at once: whoever calls this holds the context by other means, a ReformerContext.
    private static CUcontext PrimaryOf(int device)
    {
        CUdevice handle = default;
        CUcontext primary = default;
        Check(DriverAPINativeMethods.DeviceManagement.cuDeviceGet(ref handle, device));
        Check(DriverAPINativeMethods.ContextManagement.cuDevicePrimaryCtxRetain(ref primary, handle));
        Check(DriverAPINativeMethods.ContextManagement.cuDevicePrimaryCtxRelease(handle));
        return primary;
    }

    private static void Check(CUResult result)
    {
        if (result != CUResult.Success)
        {
            throw new CudaException(result);
        }
    }
}
