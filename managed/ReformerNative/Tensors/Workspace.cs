using ReformerNative.Interop;

namespace ReformerNative.Tensors;

/// <summary>
/// Scratch memory that ops of one context share. It grows to the largest need seen and never shrinks, so that a steady
/// state allocates nothing. Its contents mean nothing between ops.
/// </summary>
/// <param name="context">The context whose ops use it.</param>
public sealed class Workspace(ReformerContext context) : IDisposable
{
    private BufferHandle? buffer;
    private bool disposed;

    /// <summary>The context whose ops use the workspace.</summary>
    public ReformerContext Context { get; } = context ?? throw new ArgumentNullException(nameof(context));

    /// <summary>Bytes it has now.</summary>
    public long Bytes { get; private set; }

    internal nint Pointer
    {
        get
        {
            ObjectDisposedException.ThrowIf(disposed, this);
            return buffer?.DangerousGetHandle() ?? 0;
        }
    }

    /// <summary>
    /// Makes sure that there are at least so many bytes. Ops do this themselves; calling it first moves the allocation
    /// to a time of one's choice.
    /// </summary>
    /// <param name="bytes">Bytes needed.</param>
    /// <exception cref="InsufficientMemoryException">There is not enough memory; the workspace is then
    /// empty.</exception>
    public void Reserve(long bytes)
    {
        ObjectDisposedException.ThrowIf(disposed, this);
        if (bytes <= Bytes)
        {
            return;
        }

        // Freed before the larger one is allocated, so that the two never exist together; work in flight may still use
        // the old one.
        Context.Synchronize();
        Bytes = 0;
        buffer?.Dispose();
        buffer = null;
        buffer = Context.Allocate(MemoryKind.Device, bytes);
        Bytes = bytes;
    }

    /// <summary>Frees the memory.</summary>
    public void Dispose()
    {
        disposed = true;
        Bytes = 0;
        buffer?.Dispose();
        buffer = null;
    }
}
