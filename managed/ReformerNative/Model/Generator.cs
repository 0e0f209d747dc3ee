using ReformerNative.Data;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>How tokens are drawn.</summary>
public sealed record GenerationOptions
{
    /// <summary>Tokens to make at most.</summary>
    public int Count { get; init; } = 256;

    /// <summary>Divides the logits: below 1 bolder, above 1 more varied, 0 always the likeliest token.</summary>
    public float Temperature { get; init; } = 1;

    /// <summary>Draw among so many likeliest tokens, 0 for all.</summary>
    public int TopK { get; init; }

    /// <summary>Then among the fewest likeliest tokens whose probabilities sum to this, 0 &lt; p &lt;= 1; 1 for all.</summary>
    public float TopP { get; init; } = 1;

    /// <summary>Seed of the draws and of the rotations, which stay the same throughout.</summary>
    public ulong Seed { get; init; }

    /// <summary>Hash rounds; null for those of the configuration.</summary>
    public int? Rounds { get; init; }

    /// <summary>Stop after this id; null to go on.</summary>
    public int? EndToken { get; init; }

    /// <summary>The model sees at most so many of the last tokens; null for as many as it has positions.</summary>
    public int? Context { get; init; }
}

/// <summary>
/// Continues sequences with a causal language model. It keeps nothing between tokens: each is computed from all before it. The caller
/// disposes it; the model stays.
/// </summary>
public sealed class Generator : IDisposable
{
    private readonly ReformerModel _model;
    private readonly Tensor _id;

    /// <summary>Creates a generator.</summary>
    /// <param name="model">A causal language model; it must live as long as the generator.</param>
    /// <exception cref="NotSupportedException">The model is not a causal language model.</exception>
    public Generator(ReformerModel model)
    {
        ArgumentNullException.ThrowIfNull(model);
        if (model.Config.Task != ReformerTask.CausalLanguageModel)
        {
            throw new NotSupportedException($"expected a causal language model, found {model.Config.Task}");
        }

        _model = model;
        _id = new Tensor(model.Context, new TensorShape(1), DType.Int32);
    }

    /// <summary>Draws tokens one after the other.</summary>
    /// <param name="prompt">Ids to continue, at least one.</param>
    /// <param name="options">How to draw.</param>
    /// <param name="cancellation">Ends the sequence early.</param>
    /// <returns>The new ids, as they are drawn.</returns>
    /// <exception cref="ArgumentException">The prompt is empty or an option is impossible.</exception>
    public IEnumerable<int> Generate(IReadOnlyList<int> prompt, GenerationOptions options, CancellationToken cancellation = default)
    {
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
    public void Dispose() => _id.Dispose();

    private IEnumerable<int> Continue(IReadOnlyList<int> prompt, GenerationOptions options, CancellationToken cancellation)
    {
        List<int> ids = [.. prompt];
        int window = (int)Math.Min(_model.Config.PositionLimit ?? int.MaxValue, options.Context ?? int.MaxValue);
        var batch = new TokenBatch(1, 1);
        var run = new RunOptions { Seed = options.Seed, Rounds = options.Rounds };
        for (int made = 0; made < options.Count && !cancellation.IsCancellationRequested; made++)
        {
            int length = Math.Min(ids.Count, window);
            batch.Reshape(1, length);
            System.Runtime.InteropServices.CollectionsMarshal.AsSpan(ids)[^length..].CopyTo(batch.Ids);
            int id = Draw(_model.NextTokenLogits(batch, run), options, made);
            ids.Add(id);
            yield return id;
            if (id == options.EndToken)
            {
                yield break;
            }
        }
    }

    private int Draw(TensorView logits, GenerationOptions options, int made)
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
        Span<int> id = stackalloc int[1];
        _id.CopyTo(id);

        // A GPU's way to refuse a row; the CPU's op throws by itself.
        return id[0] >= 0 ? id[0] : throw new ArgumentException("logits: expected finite values, found NaN or infinity, or none that is finite");
    }
}
