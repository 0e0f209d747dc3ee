using System.Runtime.InteropServices;
using ReformerNative.Data;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>Whether generation keeps what layers computed of earlier tokens.</summary>
public enum CacheUse
{
    /// <summary>
    /// Where that changes nothing but the rounding of sums: while all layers are
    /// <see cref="AttentionOptions.IsPrefixCausal"/>.
    /// </summary>
    Auto,

    /// <summary>
    /// Always. Layers whose attention is not so are continued by the nearest rule that is: LSH by the strict window.
    /// </summary>
    On,

    /// <summary>Never: a forward pass over all tokens for every new one.</summary>
    Off,
}

/// <summary>How tokens are drawn.</summary>
public sealed record GenerationOptions
{
    /// <summary>Tokens to make at most.</summary>
    public int Count { get; init; } = 256;

    /// <summary>Divides the logits: below 1 bolder, above 1 more varied, 0 always the likeliest token.</summary>
    public float Temperature { get; init; } = 1;

    /// <summary>Draw among so many likeliest tokens, 0 for all.</summary>
    public int TopK { get; init; }

    /// <summary>
    /// Then among the fewest likeliest tokens whose probabilities sum to this, 0 &lt; p &lt;= 1; 1 for all.
    /// </summary>
    public float TopP { get; init; } = 1;

    /// <summary>Seed of the draws and of the rotations, which stay the same throughout.</summary>
    public ulong Seed { get; init; }

    /// <summary>Hash rounds; null for those of the configuration.</summary>
    public int? Rounds { get; init; }

    /// <summary>Stop after this id; null to go on.</summary>
    public int? EndToken { get; init; }

    /// <summary>The model sees at most so many of the last tokens; null for as many as it has positions.</summary>
    public int? Context { get; init; }

    /// <summary>Whether earlier tokens are kept instead of computed again for each new one.</summary>
    public CacheUse Cache { get; init; }
}

/// <summary>
/// Continues sequences with a causal language model. With a cache (<see cref="GenerationOptions.Cache"/>) a prompt is
/// one forward pass and each further token costs the reading of the weights, whatever its position; without one, or
/// once the sequence is longer than the model may see, each token is a forward pass. The caller disposes it; the model
/// stays.
/// </summary>
public sealed class Generator : IDisposable
{
    private readonly ReformerModel _model;
    private readonly Tensor _id;
    private readonly Tensor _drawn; // the same in memory that the host can read
    private bool _disposed;

    /// <summary>Creates a generator.</summary>
    /// <param name="model">A causal language model; it must live as long as the generator.</param>
    /// <exception cref="NotSupportedException">The model is not a causal language model.</exception>
    public Generator(ReformerModel model)
    {
        ArgumentNullException.ThrowIfNull(model);
        var head = HeadKind.Of(model.Config.Task);
        if (!head.PredictsNextToken)
        {
            throw new NotSupportedException($"expected a causal language model, found a {head.Name}");
        }

        _model = model;
        using ModelGate.Visit visit = model.Enter(nameof(Generator));
        _id = new Tensor(model.Context, new TensorShape(1), DType.Int32);
        _drawn = new Tensor(model.Context, new TensorShape(1), DType.Int32, MemoryKind.Host);
    }

    /// <summary>Draws tokens one after the other.</summary>
    /// <param name="prompt">Ids to continue, at least one.</param>
    /// <param name="options">How to draw.</param>
    /// <param name="cancellation">Ends the sequence early.</param>
    /// <returns>The new ids, as they are drawn.</returns>
    /// <exception cref="ArgumentException">The prompt is empty or an option is impossible.</exception>
    public IEnumerable<int> Generate(
        IReadOnlyList<int> prompt, GenerationOptions options, CancellationToken cancellation = default)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        ArgumentNullException.ThrowIfNull(prompt);
        ArgumentNullException.ThrowIfNull(options);
        ArgumentOutOfRangeException.ThrowIfNegative(options.Count, nameof(options));
        if (options.Context is int limit)
        {
            ArgumentOutOfRangeException.ThrowIfLessThan(limit, 1, nameof(options));
        }

        return prompt.Count > 0
            ? Continue(prompt, options, cancellation)
            : throw new ArgumentException("prompt: expected at least one id, found none", nameof(prompt));
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _disposed = true;
        _id.Dispose();
        _drawn.Dispose();
    }

    private IEnumerable<int> Continue(
        IReadOnlyList<int> prompt, GenerationOptions options, CancellationToken cancellation)
    {
        List<int> ids = [.. prompt];
        int window = (int)Math.Min(_model.Config.PositionLimit ?? int.MaxValue, options.Context ?? int.MaxValue);
        var batch = new TokenBatch(1, 1);
        var run = new RunOptions { Seed = options.Seed, Rounds = options.Rounds };
        using TokenCache? cache = options.Cache == CacheUse.Off
            ? null
            : new TokenCache(_model, run, Math.Min(window, (long)prompt.Count + options.Count));
        for (int made = 0; made < options.Count && !cancellation.IsCancellationRequested; made++)
        {
            int id = Next(made);
            ids.Add(id);
            yield return id;
            if (id == options.EndToken)
            {
                yield break;
            }
        }

        int Next(int made)
        {
            ObjectDisposedException.ThrowIf(_disposed, this);
            using ModelGate.Visit visit = _model.Enter(nameof(Generate));
            Span<int> seen = CollectionsMarshal.AsSpan(ids)[^Math.Min(ids.Count, window)..];

            // A window that has begun to move gives every token another position.
            if (cache is not null && ids.Count <= window && (options.Cache == CacheUse.On || cache.IsExact(ids.Count)))
            {
                return Draw(cache.Enqueue(seen), cache, options, made);
            }

            batch.Reshape(1, seen.Length);
            seen.CopyTo(batch.Ids);
            return Draw(_model.NextTokenLogits(batch, run), null, options, made);
        }
    }

    /// <summary>
    /// Draws the next id. With a cache this is the one place where the host waits for a GPU: for the id and, of exact
    /// residuals, the range report.
    /// </summary>
    private int Draw(TensorView logits, TokenCache? cache, GenerationOptions options, int made)
    {
        bool fed = false;
        try
        {
            new Sample
            {
                Temperature = options.Temperature,
                TopK = options.TopK,
                TopP = options.TopP,
                Seed = options.Seed,
                Step = (ulong)made,
                Logits = logits,
                Ids = _id,
            }.Run(_model.Workspace);
            _drawn.View.CopyFrom(_id);
            cache?.Feed(_id);
            fed = true;
        }
        finally
        {
            // A stream that left its range explains logits that nothing can be drawn from, so it is what is thrown.
            _model.Context.Synchronize();
            cache?.Confirm(fed ? _drawn.AsSpan<int>()[0] : null);
        }

        int id = _drawn.AsSpan<int>()[0];

        // A GPU's way to refuse a row; the CPU's op throws by itself.
        return id >= 0
            ? id
            : throw new ArgumentException(
                "logits: expected finite values, found NaN or infinity, or none that is finite");
    }
}
