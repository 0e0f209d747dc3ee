using System.Diagnostics.CodeAnalysis;
using ReformerNative.Interop;

namespace ReformerNative.Tensors;

/// <summary>Where memory lies.</summary>
public enum MemoryKind
{
    /// <summary>Where the context's ops read and write.</summary>
    Device = NativeConstants.RFN_MEMORY_DEVICE,

    /// <summary>Host memory, page-locked for a GPU's context: the fast end of a copy.</summary>
    Host = NativeConstants.RFN_MEMORY_HOST,
}

/// <summary>
/// A dense row-major array of a context, which owns its memory until it is disposed. Ops and copies work on its
/// <see cref="View"/>s.
/// </summary>
public sealed class Tensor : IDisposable
{
    private readonly BufferHandle? buffer;
    private readonly nint foreign;

    /// <summary>Allocates memory; its contents are undefined.</summary>
    /// <param name="context">The context whose ops use the tensor.</param>
    /// <param name="shape">Sizes of the axes.</param>
    /// <param name="type">Type of the elements.</param>
    /// <param name="memory">Where the memory lies.</param>
    /// <exception cref="InsufficientMemoryException">There is not enough memory.</exception>
    public Tensor(
        ReformerContext context, TensorShape shape, DType type = DType.Float32, MemoryKind memory = MemoryKind.Device)
    {
        ArgumentNullException.ThrowIfNull(context);
        Context = context;
        Memory = memory;
        View = new TensorView(this, 0, shape, type);
        buffer = context.Allocate(memory, View.ByteCount);
    }

    private Tensor(ReformerContext context, nint foreign, TensorShape shape, DType type, MemoryKind memory)
    {
        Context = context;
        Memory = memory;
        this.foreign = foreign;
        View = new TensorView(this, 0, shape, type);
    }

    /// <summary>The context that the tensor belongs to.</summary>
    public ReformerContext Context { get; }

    /// <summary>Where the memory lies.</summary>
    public MemoryKind Memory { get; }

    /// <summary>The whole tensor.</summary>
    public TensorView View { get; }

    /// <summary>Sizes of the axes.</summary>
    public TensorShape Shape => View.Shape;

    /// <summary>Type of the elements.</summary>
    public DType DType => View.DType;

    internal nint Pointer
    {
        get
        {
            if (buffer is null)
            {
                return foreign;
            }

            ObjectDisposedException.ThrowIf(buffer.IsClosed, this);
            return buffer.DangerousGetHandle();
        }
    }

    internal bool IsHostAccessible => Memory == MemoryKind.Host || Context.Device.Type == DeviceType.Cpu;

    /// <summary>The view of the whole.</summary>
    /// <param name="tensor">A tensor, or null for the absent one.</param>
    [SuppressMessage(
        "Usage", "CA2225:Operator overloads have named alternates",
        Justification = "The property View is the named alternative.")]
    public static implicit operator TensorView(Tensor? tensor) => tensor is null ? default : tensor.View;

    /// <summary>
    /// A tensor over memory that somebody else owns, such as another library's device buffer or a memory-mapped file.
    /// </summary>
    /// <param name="context">The context whose ops use the memory.</param>
    /// <param name="pointer">Address of the first element; it must stay valid while the tensor is used.</param>
    /// <param name="byteCount">Bytes at the address.</param>
    /// <param name="shape">Sizes of the axes.</param>
    /// <param name="type">Type of the elements.</param>
    /// <param name="memory">Where the memory lies.</param>
    /// <returns>The tensor. Disposing it frees nothing.</returns>
    public static Tensor Wrap(
        ReformerContext context, nint pointer, long byteCount, TensorShape shape, DType type = DType.Float32,
        MemoryKind memory = MemoryKind.Device)
    {
        ArgumentNullException.ThrowIfNull(context);
        var tensor = new Tensor(context, pointer, shape, type, memory);
        return byteCount >= tensor.View.ByteCount
            ? tensor
            : throw new ArgumentException(
                $"Expected at least {tensor.View.ByteCount} bytes for {tensor.View}, got {byteCount}.",
                nameof(byteCount));
    }

    /// <summary>Copies values from managed memory; returns when they are there.</summary>
    /// <typeparam name="T">The C# type of the elements.</typeparam>
    /// <param name="source">As many values as the tensor has elements.</param>
    public void CopyFrom<T>(ReadOnlySpan<T> source)
        where T : unmanaged => View.CopyFrom(source);

    /// <summary>Copies the elements to managed memory; returns when they are there.</summary>
    /// <typeparam name="T">The C# type of the elements.</typeparam>
    /// <param name="destination">Room for as many values as the tensor has elements.</param>
    public void CopyTo<T>(Span<T> destination)
        where T : unmanaged => View.CopyTo(destination);

    /// <summary>The elements in a new array.</summary>
    /// <typeparam name="T">The C# type of the elements.</typeparam>
    /// <returns>The array, in memory order.</returns>
    public T[] ToArray<T>()
        where T : unmanaged => View.ToArray<T>();

    /// <summary>The elements themselves, for tensors in host memory. Valid until the tensor is disposed.</summary>
    /// <typeparam name="T">The C# type of the elements.</typeparam>
    /// <returns>The elements in memory order.</returns>
    public Span<T> AsSpan<T>()
        where T : unmanaged => View.AsSpan<T>();

    /// <summary>Sets every byte to zero, in the order of the context's stream.</summary>
    public void Zero() => View.Zero();

    /// <summary>The same elements with other axes.</summary>
    /// <param name="shape">A shape with the same number of elements.</param>
    /// <returns>The view.</returns>
    public TensorView Reshape(TensorShape shape) => View.Reshape(shape);

    /// <summary>A range of the outermost axis.</summary>
    /// <param name="start">The first row.</param>
    /// <param name="count">Number of rows.</param>
    /// <returns>The view, of shape [count, ...].</returns>
    public TensorView Rows(long start, long count) => View.Rows(start, count);

    /// <summary>Frees the memory. Views of it must not be used afterwards.</summary>
    public void Dispose() => buffer?.Dispose();

    /// <summary>Type and shape in words.</summary>
    /// <returns>For example <c>Float32 [2, 64]</c>.</returns>
    public override string ToString() => View.ToString();

    internal bool IsUsableIn(ReformerContext context) =>
        context.Device == Context.Device && (Memory == MemoryKind.Device || context.Device.Type == DeviceType.Cpu);
}
