using System.Runtime.InteropServices;
using ReformerNative.Interop;

namespace ReformerNative.Tensors;

/// <summary>Bytes of memory.</summary>
/// <param name="FreeBytes">What can still be allocated.</param>
/// <param name="TotalBytes">What there is.</param>
public readonly record struct MemoryInfo(long FreeBytes, long TotalBytes);

/// <summary>
/// A device and an order of work on it. Tensors and workspaces belong to a context; ops run in it, on the CPU before
/// they return, on a GPU in order and in the background. One thread at a time may use it. Memory of tensors that
/// outlive the context stays valid until they are disposed.
/// </summary>
public sealed unsafe class ReformerContext : IDisposable
{
    private readonly ContextHandle context;
    private readonly StreamHandle stream;
    private bool disposed; // the handle itself stays open while tensors hold it

    /// <summary>Opens a device.</summary>
    /// <param name="device">The device; the CPU by default.</param>
    /// <param name="threads">Worker threads of the CPU backend, 0 for all processors that the process may use. Results
    /// do not depend on it.</param>
    /// <exception cref="NotSupportedException">There is no such device, or its backend cannot be loaded; the message
    /// says why.</exception>
    /// <exception cref="DllNotFoundException">The native library was not found; the message lists every place
    /// tried.</exception>
    public ReformerContext(Device device = default, int threads = 0)
        : this(device, threads, null)
    {
    }

    private ReformerContext(Device device, int threads, nint? nativeStream)
    {
        NativeLoader.EnsureLoaded();
        Device = device;
        NativeError.ThrowIfFailed(
            NativeMethods.rfn_context_create((int)device.Type, device.Index, threads, out context));
        try
        {
            NativeError.ThrowIfFailed(nativeStream is nint existing
                ? NativeMethods.rfn_stream_wrap(context, existing, out stream)
                : NativeMethods.rfn_stream_create(context, out stream));
            int actual = 0;
            NativeError.ThrowIfFailed(NativeMethods.rfn_context_threads(context, &actual));
            Threads = actual;
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>The device.</summary>
    public Device Device { get; }

    /// <summary>Worker threads of the CPU backend.</summary>
    public int Threads { get; }

    /// <summary>
    /// What matrix products round their inputs to, for all later work: a backward pass needs the precision of its
    /// forward pass.
    /// </summary>
    /// <exception cref="NotSupportedException">The device has no such products.</exception>
    public Precision Precision
    {
        get
        {
            int precision = 0;
            NativeError.ThrowIfFailed(NativeMethods.rfn_context_precision(Handle, &precision));
            return (Precision)precision;
        }

        set => NativeError.ThrowIfFailed(NativeMethods.rfn_context_set_precision(Handle, (int)value));
    }

    /// <summary>Memory of the device, or for the CPU what the process may still allocate.</summary>
    public MemoryInfo MemoryInfo
    {
        get
        {
            long free = 0;
            long total = 0;
            NativeError.ThrowIfFailed(NativeMethods.rfn_memory_info(Handle, &free, &total));
            return new MemoryInfo(free, total);
        }
    }

    /// <summary>Whether the device's backend has an op.</summary>
    /// <param name="function">The native function that runs it, such as
    /// <c>rfn_reversible_block_decode_forward</c>.</param>
    /// <returns>Whether it does; an op that it lacks throws <see cref="NotSupportedException"/>.</returns>
    /// <exception cref="ArgumentException">There is no such function.</exception>
    public bool Supports(string function)
    {
        ArgumentException.ThrowIfNullOrEmpty(function);
        int supported = 0;
        fixed (byte* name = System.Text.Encoding.UTF8.GetBytes(function + "\0"))
        {
            NativeError.ThrowIfFailed(NativeMethods.rfn_op_supported(Handle, name, &supported));
        }

        return supported != 0;
    }

    internal ContextHandle Handle
    {
        get
        {
            ObjectDisposedException.ThrowIf(disposed, this);
            return context;
        }
    }

    internal StreamHandle Stream
    {
        get
        {
            ObjectDisposedException.ThrowIf(disposed, this);
            return stream;
        }
    }

    /// <summary>Opens a device and works in the order of a stream that somebody else owns.</summary>
    /// <param name="device">A GPU.</param>
    /// <param name="nativeStream">A <c>cudaStream_t</c>; it must outlive the context.</param>
    /// <returns>The context.</returns>
    public static ReformerContext OnStream(Device device, nint nativeStream) => new(device, 0, nativeStream);

    /// <summary>Allocates a tensor whose elements are zero.</summary>
    /// <param name="shape">Sizes of the axes.</param>
    /// <param name="type">Type of the elements.</param>
    /// <returns>The tensor, to be disposed by the caller.</returns>
    public Tensor Zeros(TensorShape shape, DType type = DType.Float32)
    {
        var tensor = new Tensor(this, shape, type);
        tensor.Zero();
        return tensor;
    }

    /// <summary>Allocates a tensor and copies values into it.</summary>
    /// <typeparam name="T">float, double, int, long or byte.</typeparam>
    /// <param name="values">As many values as the shape has elements.</param>
    /// <param name="shape">Sizes of the axes.</param>
    /// <returns>The tensor, to be disposed by the caller.</returns>
    public Tensor FromValues<T>(ReadOnlySpan<T> values, TensorShape shape)
        where T : unmanaged
    {
        var tensor = new Tensor(this, shape, DTypes.Of<T>());
        try
        {
            tensor.CopyFrom(values);
            return tensor;
        }
        catch
        {
            tensor.Dispose();
            throw;
        }
    }

    /// <summary>Waits for all work given to this context so far and throws if any of it failed.</summary>
    public void Synchronize() => NativeError.ThrowIfFailed(NativeMethods.rfn_stream_synchronize(Stream));

    /// <summary>Closes the context.</summary>
    public void Dispose()
    {
        disposed = true;
        stream?.Dispose();
        context.Dispose();
    }

    internal BufferHandle Allocate(MemoryKind memory, long bytes)
    {
        nint pointer = 0;
        NativeError.ThrowIfFailed(NativeMethods.rfn_buffer_allocate(Handle, (int)memory, bytes, &pointer));
        return new BufferHandle(Handle, (int)memory, bytes, pointer);
    }

    // Host memory of a GPU's context is the host's to write, once the stream has passed what uses it.
    internal void Zero(in TensorView view)
    {
        if (Device.Type != DeviceType.Cpu && view.IsHostAccessible)
        {
            Synchronize();
            NativeMemory.Clear((void*)view.Pointer, checked((nuint)view.ByteCount));
            return;
        }

        NativeError.ThrowIfFailed(NativeMethods.rfn_fill_zero(Stream, view.Pointer, view.ByteCount));
    }

    // Managed memory is pinned for the call only, so a copy that runs in the background is waited for.
    internal void CopyFromHost<T>(ReadOnlySpan<T> source, in TensorView destination)
        where T : unmanaged
    {
        fixed (T* pointer = source)
        {
            Copy(
                (nint)pointer, fromHost: true, destination.Pointer, destination.IsHostAccessible,
                destination.ByteCount);
            Synchronize();
        }
    }

    internal void CopyToHost<T>(in TensorView source, Span<T> destination)
        where T : unmanaged
    {
        fixed (T* pointer = destination)
        {
            Copy(source.Pointer, source.IsHostAccessible, (nint)pointer, toHost: true, source.ByteCount);
            Synchronize();
        }
    }

    /// <summary>Copies between tensors of any two contexts, this one being the destination's.</summary>
    internal void CopyBetween(in TensorView source, in TensorView destination)
    {
        // The CPU cannot read a GPU's memory: that GPU's stream brings it. And the CPU's own memory is never in use by
        // work in the background.
        ReformerContext owner = source.Context;
        ReformerContext worker = Device.Type == DeviceType.Cpu ? owner : this;
        worker.Copy(
            source.Pointer, source.IsHostAccessible, destination.Pointer, destination.IsHostAccessible,
            destination.ByteCount);
        if (worker.Device.Type != DeviceType.Cpu
            && (Device.Type == DeviceType.Cpu || owner.Device.Type == DeviceType.Cpu))
        {
            worker.Synchronize();
        }
    }

    private void Copy(nint source, bool fromHost, nint destination, bool toHost, long bytes)
    {
        if (Device.Type != DeviceType.Cpu && fromHost && toHost)
        {
            Synchronize();
            Buffer.MemoryCopy((void*)source, (void*)destination, bytes, bytes);
            return;
        }

        int direction = fromHost == toHost ? NativeConstants.RFN_COPY_DEVICE_TO_DEVICE
            : fromHost ? NativeConstants.RFN_COPY_HOST_TO_DEVICE
            : NativeConstants.RFN_COPY_DEVICE_TO_HOST;
        NativeError.ThrowIfFailed(NativeMethods.rfn_copy(Stream, destination, source, bytes, direction));
    }
}
