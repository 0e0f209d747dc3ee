using ReformerNative.Data;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>What fixes the buffers of a pass.</summary>
/// <param name="Batch">B, examples.</param>
/// <param name="Length">T, tokens of an example.</param>
/// <param name="Rounds">R, hash rounds.</param>
/// <param name="FullAttention">Whether LSH layers attend to the whole sequence.</param>
/// <param name="Backward">Whether there are gradients.</param>
/// <param name="Inspect">Whether everything that is computed can be read afterwards.</param>
internal readonly record struct PassShape(
    int Batch, int Length, int Rounds, bool FullAttention, bool Backward, bool Inspect)
{
    /// <summary>B·T: ops that work row by row see the tokens of all examples one after the other.</summary>
    public long Rows => (long)Batch * Length;

    /// <summary>The shape of the pass that a call asks for.</summary>
    /// <exception cref="ArgumentException">The model has no such pass.</exception>
    public static PassShape For(
        ReformerConfig config, TokenBatch batch, in RunOptions options, bool backward, bool inspect)
    {
        if (config.PositionLimit is long limit && batch.Length > limit)
        {
            throw new ArgumentException(
                $"length: expected at most the {limit} positions of the model, found {batch.Length}", nameof(batch));
        }

        int rounds = options.Rounds ?? config.NumHashes;
        return rounds >= 1
            ? new PassShape(batch.BatchSize, batch.Length, rounds, options.FullAttention, backward, inspect)
            : throw new ArgumentException(
                $"rounds: expected an integer from 1 up, found {rounds}", nameof(options));
    }
}

/// <summary>
/// Gives a pass a buffer. A run gives it memory (<see cref="PassMemory"/>), a memory plan a shape that it has counted.
/// </summary>
/// <param name="name">What a memory plan calls it; buffers of one name are counted together.</param>
/// <param name="shape">Its shape.</param>
/// <param name="type">Type of its elements.</param>
internal delegate TensorView PassAllocator(string name, TensorShape shape, DType type);

/// <summary>The buffers of passes in the memory of a context.</summary>
/// <param name="context">The context.</param>
internal sealed class PassMemory(ReformerContext context) : IDisposable
{
    private readonly List<Tensor> _tensors = [];

    /// <summary>A <see cref="PassAllocator"/>.</summary>
    public TensorView Allocate(string name, TensorShape shape, DType type)
    {
        var tensor = new Tensor(context, shape, type);
        _tensors.Add(tensor);
        return tensor.View;
    }

    /// <summary>Frees all buffers. More can be allocated afterwards.</summary>
    public void Dispose()
    {
        foreach (Tensor tensor in _tensors)
        {
            tensor.Dispose();
        }

        _tensors.Clear();
    }
}
