using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>
/// A pass over the layers of a model that keeps what they computed of one sequence, so that a further token costs the
/// reading of the weights, whatever its position. A prompt goes through the layers' ordinary forward ops once.
/// </summary>
internal sealed class TokenCache : IDisposable
{
    private const int FirstCapacity = 256; // rows beyond the prompt's; doubled when they are used up

    private readonly ReformerModel _model;
    private readonly RunOptions _options;
    private readonly long _most;
    private readonly PassMemory _memory;
    private readonly int[] _id = new int[1];
    private readonly Tensor _report; // of the last token, in memory that the host can read
    private readonly LayerCache[] _layers;
    private ModelPass? _token; // a pass of one token
    private AttentionOptions[] _forms = [];
    private int _formsFrom;
    private int _formsTo;
    private bool _exact;
    private int _length;
    private int _enqueued; // length of a sequence that is not confirmed
    private bool _reported;
    private int? _fed; // id in the pass of one token

    /// <summary>An empty cache.</summary>
    /// <param name="model">Must live as long as the cache.</param>
    /// <param name="options">Seed and rounds.</param>
    /// <param name="most">No sequence grows longer.</param>
    public TokenCache(ReformerModel model, in RunOptions options, long most)
    {
        _model = model;
        _options = options;
        _most = most;
        _memory = new PassMemory(model.Context);
        _report = new Tensor(model.Context, new TensorShape(4), DType.Int64, MemoryKind.Host);
        _layers = [.. model.Config.AttnLayers.Select(_ => new LayerCache())];
    }

    private int Rounds => _options.Rounds ?? _model.Config.NumHashes;

    /// <summary>
    /// Whether a sequence of this length is continued as the whole forward pass would: whether every layer is
    /// <see cref="AttentionOptions.IsPrefixCausal"/>.
    /// </summary>
    public bool IsExact(int length)
    {
        ChooseForms(length);
        return _exact;
    }

    /// <summary>The outputs of the head for what follows a sequence: [1, V], valid until the next call.</summary>
    /// <param name="ids">The sequence. Of what the last call was given, a single id further costs one token; anything
    /// else a forward pass.</param>
    public TensorView NextTokenLogits(ReadOnlySpan<int> ids)
    {
        TensorView logits = Enqueue(ids);
        _model.Context.Synchronize();
        Confirm();
        return logits;
    }

    /// <summary>
    /// The same, and a single id further costs no wait for a GPU: <see cref="Confirm"/> has to follow, after a wait for
    /// the context's stream.
    /// </summary>
    public TensorView Enqueue(ReadOnlySpan<int> ids)
    {
        ChooseForms(ids.Length);
        bool further = _length > 0 && ids.Length == _length + 1;
        _length = 0; // until all layers have the sequence
        ModelPass token = _token ??= _model.MakePass(Shape(1, fullAttention: true), _memory);
        if (further)
        {
            Step(token, ids);
        }
        else
        {
            Fill(token, ids);
        }

        _enqueued = ids.Length;
        _reported = further && !token.Stack.RangeReport.IsAbsent;
        if (_reported)
        {
            _report.View.CopyFrom(token.Stack.RangeReport);
        }

        return token.Head.NextTokenLogits(_model.Workspace, _options);
    }

    /// <summary>Brings the id that follows what was enqueued from where an op drew it.</summary>
    public void Feed(TensorView id) => _token!.Stack.Load(id);

    /// <summary>From here on the cache holds what was enqueued.</summary>
    /// <param name="fed">The id that <see cref="Feed"/> brought, if it did.</param>
    /// <exception cref="ResidualRangeException">A residual stream left its exact range: the cache is empty.</exception>
    public void Confirm(int? fed = null)
    {
        _fed = fed;
        if (_reported)
        {
            _token!.Stack.CheckRange(_report.AsSpan<long>(), _enqueued - 1);
        }

        _length = _enqueued;
    }

    /// <summary>Frees the memory.</summary>
    public void Dispose()
    {
        foreach (LayerCache layer in _layers)
        {
            layer.Dispose();
        }

        _memory.Dispose();
        _report.Dispose();
        _token = null;
        _length = 0;
    }

    /// <summary>
    /// Layers change their form when a sequence outgrows their chunks, and with it what its first tokens see: then the
    /// cache is empty.
    /// </summary>
    private void ChooseForms(int length)
    {
        if (length < _formsFrom || length > _formsTo)
        {
            _length = 0;
            _model.Resolve(length);
            var forms = new LayerForms(_model.Config, length, Rounds, fullAttention: false);
            _forms =
            [
                .. Enumerable.Range(0, _layers.Length).Select(layer =>
                    forms.Attention(layer, dropout: false, masked: false) with { PaddedLength = 0, PadBucket = false }),
            ];
            _exact = _forms.All(form => form.IsPrefixCausal);
            _formsFrom = length;
            _formsTo = LayerForms.LastLength(_model.Config, length);
        }
    }

    /// <summary>
    /// The whole sequence through the layers, which leave their keys, values and buckets in the caches, and its last
    /// token in the streams of the pass of one token.
    /// </summary>
    private void Fill(ModelPass token, ReadOnlySpan<int> ids)
    {
        ReformerConfig config = _model.Config;
        int length = ids.Length;
        for (int layer = 0; layer < _layers.Length; layer++)
        {
            _layers[layer].Prepare(
                _model.Context, config, _forms[layer],
                Rows(layer, Math.Max(length, Math.Min(_most, (long)length + FirstCapacity))));
        }

        using var memory = new PassMemory(_model.Context);
        LayerStack prompt = _model.MakeStack(Shape(length, fullAttention: false), memory);
        TensorView keys = default;
        TensorView values = default;
        TensorView buckets = default;
        if (_layers.Any(layer => layer.Rows < length))
        {
            var all = new TensorShape(1, length, (long)config.NumAttentionHeads * config.AttentionHeadSize);
            keys = memory.Allocate("prompt", all, DType.Float32);
            values = memory.Allocate("prompt", all, DType.Float32);
        }

        if (prompt.Forms.FirstHashed is >= 0 and int hashed)
        {
            TensorShape shape = _forms[hashed].BucketsShape(1, config.NumAttentionHeads, length);
            buckets = memory.Allocate("prompt", shape, DType.Int32);
        }

        Workspace workspace = _model.Workspace;
        workspace.Reserve(prompt.WorkspaceBytes(_model.Context));
        prompt.Load(ids, mask: []);
        prompt.Embed(workspace, _options);
        for (int layer = 0; layer < _layers.Length; layer++)
        {
            prompt.DrawRotations(_model.Context, layer, _options);
            ReversibleBlock block = prompt.Block(layer, _options, keep: false);
            _layers[layer].Fill(workspace, block, keys, values, buckets);
        }

        prompt.CheckRange();
        token.Stack.CopyRow(prompt, length - 1);
    }

    private void Step(ModelPass token, ReadOnlySpan<int> ids)
    {
        int position = ids.Length - 1;
        bool fed = _fed == ids[^1];
        _fed = null;
        if (!fed)
        {
            _id[0] = ids[^1];
            token.Stack.Load(_id, mask: []);
        }

        token.Stack.Embed(_model.Workspace, _options, position);
        for (int layer = 0; layer < _layers.Length; layer++)
        {
            LayerCache cache = _layers[layer];
            cache.Grow(
                Rows(layer, position + 1), Rows(layer, Math.Min(_most, Math.Max(position + 1, 2L * position))),
                position);
            cache.Decode(token.Stack.Block(layer, _options, keep: false), _forms[layer], position)
                .Run(_model.Workspace);
        }
    }

    private PassShape Shape(int length, bool fullAttention) =>
        new(1, length, Rounds, fullAttention, Backward: false, Inspect: false);

    /// <summary>Rows that a layer needs for so many tokens: a local one those of its window.</summary>
    private long Rows(int layer, long tokens) =>
        _forms[layer].Kind == AttentionKind.Local
            ? Math.Min(tokens, (_forms[layer].ChunksBefore + 1) * _forms[layer].ChunkLength)
            : tokens;
}
