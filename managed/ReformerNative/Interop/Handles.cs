using System.Runtime.InteropServices;

namespace ReformerNative.Interop;

/// <summary>Owns an <c>rfn_context</c>.</summary>
internal sealed class ContextHandle : SafeHandle
{
    public ContextHandle()
        : base(0, ownsHandle: true)
    {
    }

    public override bool IsInvalid => handle == 0;

    protected override bool ReleaseHandle()
    {
        NativeMethods.rfn_context_destroy(handle);
        return true;
    }
}

/// <summary>Owns an <c>rfn_stream</c>, which keeps its context alive by itself.</summary>
internal sealed class StreamHandle : SafeHandle
{
    public StreamHandle()
        : base(0, ownsHandle: true)
    {
    }

    public override bool IsInvalid => handle == 0;

    protected override bool ReleaseHandle()
    {
        NativeMethods.rfn_stream_destroy(handle);
        return true;
    }
}

/// <summary>
/// A handle that holds its context open until it is released itself, in whatever order the two are disposed or
/// finalized.
/// </summary>
internal abstract class ContextChildHandle : SafeHandle
{
    private ContextHandle? context;

    protected ContextChildHandle()
        : base(0, ownsHandle: true)
    {
    }

    public override bool IsInvalid => handle == 0;

    internal void Attach(ContextHandle owner)
    {
        bool added = false;
        owner.DangerousAddRef(ref added);
        context = owner;
    }

    protected sealed override bool ReleaseHandle()
    {
        bool released = Release(context?.DangerousGetHandle() ?? 0);
        context?.DangerousRelease();
        return released;
    }

    protected abstract bool Release(nint contextPointer);
}

/// <summary>Owns an <c>rfn_event</c>.</summary>
internal sealed class EventHandle : ContextChildHandle
{
    protected override bool Release(nint contextPointer)
    {
        NativeMethods.rfn_event_destroy(handle);
        return true;
    }
}

/// <summary>Owns memory from <c>rfn_buffer_allocate</c>.</summary>
internal sealed class BufferHandle : ContextChildHandle
{
    private readonly int memory;
    private readonly long bytes;

    /// <summary>Takes what a call of rfn_buffer_allocate gave.</summary>
    internal BufferHandle(ContextHandle context, int memory, long bytes, nint pointer)
    {
        this.memory = memory;
        this.bytes = bytes;
        if (pointer != 0)
        {
            Attach(context);
            SetHandle(pointer);
            if (bytes > 0)
            {
                GC.AddMemoryPressure(bytes); // else a collector that sees small objects lets gigabytes pile up
            }
        }
    }

    protected override bool Release(nint contextPointer)
    {
        if (bytes > 0)
        {
            GC.RemoveMemoryPressure(bytes);
        }

        return NativeMethods.rfn_buffer_free(contextPointer, memory, handle) == NativeConstants.RFN_OK;
    }
}
