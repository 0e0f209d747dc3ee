using ReformerNative.Interop;

namespace ReformerNative.Tensors;

/// <summary>
/// A dense row-major part of a <see cref="Tensor"/>'s memory, seen with a shape. Owns nothing and costs nothing to
/// make: ops take views, and a tensor converts to the view of its whole. The default value is the absent tensor; a view
/// made by <see cref="Meta"/> has a shape but no data, which is enough to ask how much workspace an op needs.
/// </summary>
public readonly struct TensorView
{
    private readonly Tensor? owner;
    private readonly long offset; // bytes

    internal TensorView(Tensor? owner, long offset, TensorShape shape, DType type)
    {
        this.owner = owner;
        this.offset = offset;
        Shape = shape;
        DType = type;
    }

    /// <summary>The tensor that is not there; all optional arguments start as this.</summary>
    public static TensorView Absent => default;

    /// <summary>Sizes of the axes.</summary>
    public TensorShape Shape { get; }

    /// <summary>Type of the elements.</summary>
    public DType DType { get; }

    /// <summary>Whether this is the absent tensor.</summary>
    public bool IsAbsent => DType == DType.None;

    /// <summary>Whether there is memory behind the shape.</summary>
    public bool HasData => owner is not null;

    /// <summary>Number of elements.</summary>
    public long ElementCount => Shape.ElementCount;

    /// <summary>Bytes of the elements.</summary>
    public long ByteCount => IsAbsent ? 0 : checked(ElementCount * DType.Size());

    /// <summary>
    /// Address of the first element: host memory on the CPU, device memory on a GPU. Valid until the tensor is
    /// disposed.
    /// </summary>
    public nint Pointer => Owner.Pointer + checked((nint)offset);

    private Tensor Owner =>
        owner
        ?? throw new InvalidOperationException($"A tensor {Describe()} without data can only be asked for its shape.");

    /// <summary>A shape and a type without data.</summary>
    /// <param name="shape">Sizes of the axes.</param>
    /// <param name="type">Type of the elements.</param>
    /// <returns>The view.</returns>
    public static TensorView Meta(TensorShape shape, DType type = DType.Float32) => new(null, 0, shape, type);

    /// <summary>The same elements with other axes.</summary>
    /// <param name="shape">A shape with the same number of elements.</param>
    /// <returns>The view.</returns>
    public TensorView Reshape(TensorShape shape) =>
        shape.ElementCount == ElementCount
            ? new TensorView(owner, offset, shape, DType)
            : throw new ArgumentException(
                $"Expected a shape of {ElementCount} elements like {Shape}, got {shape}.", nameof(shape));

    /// <summary>A range of the outermost axis.</summary>
    /// <param name="start">The first row.</param>
    /// <param name="count">Number of rows.</param>
    /// <returns>The view, of shape [count, ...].</returns>
    public TensorView Rows(long start, long count)
    {
        if (Shape.Rank == 0 || start < 0 || count < 0 || start > Shape[0] - count)
        {
            throw new ArgumentOutOfRangeException(
                nameof(start), $"Expected rows inside {Shape}, got {count} from row {start}.");
        }

        long row = Shape[0] == 0 ? 0 : ElementCount / Shape[0];
        return new TensorView(owner, offset + (start * row * DType.Size()), Shape.WithRows(count), DType);
    }

    /// <summary>
    /// A range of the elements in memory order, seen with any shape; many tensors can so share one allocation.
    /// </summary>
    /// <param name="start">The first element.</param>
    /// <param name="shape">The shape of the part.</param>
    /// <returns>The view.</returns>
    public TensorView Part(long start, TensorShape shape) =>
        start >= 0 && start <= ElementCount - shape.ElementCount
            ? new TensorView(owner, offset + (start * DType.Size()), shape, DType)
            : throw new ArgumentOutOfRangeException(
                nameof(start), $"Expected a part of {ElementCount} elements, got {shape} from element {start}.");

    /// <summary>Copies values from managed memory; returns when they are there.</summary>
    /// <typeparam name="T">The C# type of the elements.</typeparam>
    /// <param name="source">Exactly <see cref="ElementCount"/> values.</param>
    public void CopyFrom<T>(ReadOnlySpan<T> source)
        where T : unmanaged
    {
        RequireLayout<T>(source.Length, nameof(source));
        Owner.Context.CopyFromHost(source, this);
    }

    /// <summary>
    /// Copies the elements of another tensor of the same size, between devices too. In the order of the stream of this
    /// tensor's context, or of the source's when only that is on a GPU; a copy from or to the CPU's memory is done when
    /// it returns.
    /// </summary>
    /// <param name="source">A view of the same type and number of elements; shapes may differ.</param>
    public void CopyFrom(TensorView source)
    {
        if (source.DType != DType || source.ElementCount != ElementCount)
        {
            throw new ArgumentException($"Expected {Describe()}, got {source.Describe()}.", nameof(source));
        }

        Owner.Context.CopyBetween(source, this);
    }

    /// <summary>Copies the elements to managed memory; returns when they are there.</summary>
    /// <typeparam name="T">The C# type of the elements.</typeparam>
    /// <param name="destination">Room for exactly <see cref="ElementCount"/> values.</param>
    public void CopyTo<T>(Span<T> destination)
        where T : unmanaged
    {
        RequireLayout<T>(destination.Length, nameof(destination));
        Owner.Context.CopyToHost(this, destination);
    }

    /// <summary>The elements in a new array.</summary>
    /// <typeparam name="T">The C# type of the elements.</typeparam>
    /// <returns>The array, in memory order.</returns>
    public T[] ToArray<T>()
        where T : unmanaged
    {
        var values = new T[ElementCount];
        CopyTo<T>(values);
        return values;
    }

    /// <summary>Sets every byte to zero, in the order of the tensor's stream.</summary>
    public void Zero() => Owner.Context.Zero(this);

    /// <summary>
    /// The elements themselves, for tensors in host memory of at most 2^31 - 1 elements. Valid until the tensor is
    /// disposed.
    /// </summary>
    /// <typeparam name="T">The C# type of the elements.</typeparam>
    /// <returns>The elements in memory order.</returns>
    public unsafe Span<T> AsSpan<T>()
        where T : unmanaged
    {
        RequireType<T>();
        return Owner.IsHostAccessible
            ? new Span<T>((void*)Pointer, checked((int)ElementCount))
            : throw new NotSupportedException(
                $"The tensor {Describe()} is in the memory of {Owner.Context.Device}; copy it to read it.");
    }

    /// <summary>Type and shape in words.</summary>
    /// <returns>For example <c>Float32 [2, 64]</c>.</returns>
    public override string ToString() => Describe();

    /// <summary>The view as a C struct for an op that runs in <paramref name="context"/>.</summary>
    internal rfn_tensor ToNative(ReformerContext context)
    {
        if (IsAbsent)
        {
            return default;
        }

        if (owner is not null && !owner.IsUsableIn(context))
        {
            throw new ArgumentException(
                $"The tensor {Describe()} belongs to {owner.Context.Device} ({owner.Memory}); the op runs on "
                    + $"{context.Device}."
            );
        }

        return new rfn_tensor
        {
            struct_size = (uint)System.Runtime.CompilerServices.Unsafe.SizeOf<rfn_tensor>(),
            dtype = (int)DType,
            rank = Shape.Rank,
            shape = Shape.ToNative(),
            data = owner is null ? 0 : Pointer,
            bytes = ByteCount,
        };
    }

    /// <summary>The same for a struct of results, whose fields are the elements; null without data.</summary>
    internal unsafe TResult* ToResult<TResult>(ReformerContext context, DType type)
        where TResult : unmanaged
    {
        rfn_tensor native = ToNative(context);
        if (!IsAbsent && (DType != type || ByteCount != sizeof(TResult)))
        {
            throw new ArgumentException($"Expected {type} [{sizeof(TResult) / type.Size()}], got {Describe()}.");
        }

        return (TResult*)native.data;
    }

    internal bool IsHostAccessible => Owner.IsHostAccessible;

    internal ReformerContext Context => Owner.Context;

    private string Describe() => IsAbsent ? "absent" : $"{DType} {Shape}";

    private void RequireType<T>()
        where T : unmanaged
    {
        if (DTypes.Of<T>() != DType)
        {
            throw new ArgumentException($"The tensor {Describe()} holds no values of type {typeof(T).Name}.");
        }
    }

    private void RequireLayout<T>(int length, string parameter)
        where T : unmanaged
    {
        RequireType<T>();
        if (length != ElementCount)
        {
            throw new ArgumentException($"Expected {ElementCount} values for {Shape}, got {length}.", parameter);
        }
    }
}
