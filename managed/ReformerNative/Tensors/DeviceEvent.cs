using ReformerNative.Interop;

namespace ReformerNative.Tensors;

/// <summary>
/// A point in a context's order of work, to measure time on the device or to let another context wait.
/// </summary>
public sealed unsafe class DeviceEvent : IDisposable
{
    private readonly EventHandle handle;

    /// <summary>Makes an event that is not recorded yet.</summary>
    /// <param name="context">The context that records it.</param>
    public DeviceEvent(ReformerContext context)
    {
        ArgumentNullException.ThrowIfNull(context);
        Context = context;
        NativeError.ThrowIfFailed(NativeMethods.rfn_event_create(context.Handle, out handle));
        handle.Attach(context.Handle);
    }

    /// <summary>The context that records the event.</summary>
    public ReformerContext Context { get; }

    private EventHandle Handle
    {
        get
        {
            ObjectDisposedException.ThrowIf(handle.IsClosed, this);
            return handle;
        }
    }

    /// <summary>Milliseconds on the device between two recorded events; waits for both.</summary>
    /// <param name="start">The earlier event.</param>
    /// <param name="stop">The later event.</param>
    /// <returns>The time in milliseconds.</returns>
    public static double ElapsedMilliseconds(DeviceEvent start, DeviceEvent stop)
    {
        ArgumentNullException.ThrowIfNull(start);
        ArgumentNullException.ThrowIfNull(stop);
        double milliseconds = 0;
        NativeError.ThrowIfFailed(NativeMethods.rfn_event_elapsed(start.Handle, stop.Handle, &milliseconds));
        return milliseconds;
    }

    /// <summary>Places the event behind all work given to its context so far.</summary>
    public void Record() => NativeError.ThrowIfFailed(NativeMethods.rfn_event_record(Handle, Context.Stream));

    /// <summary>Lets later work of a context, on a device of the same kind, begin only after this event.</summary>
    /// <param name="waiter">The context that waits; the calling thread does not.</param>
    public void Wait(ReformerContext waiter)
    {
        ArgumentNullException.ThrowIfNull(waiter);
        NativeError.ThrowIfFailed(NativeMethods.rfn_event_wait(Handle, waiter.Stream));
    }

    /// <summary>Frees the event.</summary>
    public void Dispose() => handle.Dispose();
}
