using System.Buffers;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// Lists of tensors as native ops over any number of tensors take them: arrays, each of as many entries. The memory is
/// pooled, so that a call allocates nothing however many there are.
/// </summary>
internal readonly ref struct TensorLists : IDisposable
{
    private readonly ReformerContext _context;
    private readonly int _count;

    /// <summary>Rents memory for lists that are set afterwards.</summary>
    /// <param name="context">The context of the tensors.</param>
    /// <param name="count">Tensors of a list.</param>
    /// <param name="lists">Lists.</param>
    public TensorLists(ReformerContext context, int count, int lists)
    {
        _context = context;
        _count = count;
        Tensors = ArrayPool<rfn_tensor>.Shared.Rent(Math.Max(1, count * lists));
    }

    /// <summary>The lists one after the other, for pinning; what is behind them means nothing.</summary>
    public rfn_tensor[] Tensors { get; }

    /// <summary>Fills a list in.</summary>
    /// <param name="list">Its number.</param>
    /// <param name="views">Its tensors; none at all: a list of absent ones.</param>
    /// <param name="name">What messages call it.</param>
    /// <exception cref="ArgumentException">They are not as many as the others.</exception>
    public void Set(int list, ReadOnlySpan<TensorView> views, string name)
    {
        Span<rfn_tensor> native = Tensors.AsSpan(list * _count, _count);
        if (views.IsEmpty)
        {
            native.Clear();
            return;
        }

        RequireLength(views.Length, name);
        for (int i = 0; i < views.Length; i++)
        {
            native[i] = views[i].ToNative(_context);
        }
    }

    /// <summary>Refuses a list that is shorter or longer than the others.</summary>
    /// <exception cref="ArgumentException">It is.</exception>
    public void RequireLength(int length, string name)
    {
        if (length != _count)
        {
            throw new ArgumentException($"{name}: expected {_count}, one for each parameter, got {length}", name);
        }
    }

    public void Dispose() => ArrayPool<rfn_tensor>.Shared.Return(Tensors);
}
