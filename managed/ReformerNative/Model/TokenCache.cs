using ReformerNative.Data;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>
/// What the layers of a model keep of one sequence, so that a further token costs the reading of the weights, whatever
/// its position: keys and values, and of LSH layers the last positions of each bucket. A prompt goes through the
/// ordinary forward pass once.
/// </summary>
internal sealed class TokenCache : IDisposable
{
    private const int FirstCapacity = 256; // rows beyond the prompt's; doubled when they are used up

    private readonly ReformerModel _model;
    private readonly RunOptions _options;
    private readonly long _most;
    private readonly List<Tensor> _buffers = [];
    private readonly TokenBatch _prompt = new(1, 1);
    private readonly int[] _id = new int[1];
    private readonly LayerCache[] _layers;
    private ModelPass? _step;
    private AttentionOptions[] _forms = [];
    private int _formsFrom;
    private int _formsTo;
    private bool _exact;
    private int _length;

    /// <summary>An empty cache.</summary>
    /// <param name="model">Must live as long as the cache.</param>
    /// <param name="options">Seed and rounds.</param>
    /// <param name="most">No sequence grows longer.</param>
    public TokenCache(ReformerModel model, in RunOptions options, long most)
    {
        _model = model;
        _options = options;
        _most = most;
        _layers = [.. model.Config.AttnLayers.Select(_ => new LayerCache())];
    }

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
        ChooseForms(ids.Length);
        return _length > 0 && ids.Length == _length + 1 ? Step(ids[^1]) : Fill(ids);
    }

    /// <summary>Frees the memory.</summary>
    public void Dispose()
    {
        foreach (LayerCache layer in _layers)
        {
            layer.Dispose();
        }

        foreach (Tensor buffer in _buffers)
        {
            buffer.Dispose();
        }

        _buffers.Clear();
        _step = null;
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
            MakeForms(length);
        }
    }

    private void MakeForms(int length)
    {
        _length = 0;
        _model.ChooseBuckets(length);
        ReformerConfig config = _model.Config;
        ModelPass pass = MakePass(length, fullAttention: false, (_, shape, type) => TensorView.Meta(shape, type));
        _forms =
        [
            .. Enumerable
                .Range(0, _layers.Length)
                .Select(layer =>
                    pass.Attention(layer, dropout: false, masked: false) with
                    {
                        PaddedLength = 0,
                        PadBucket = false,
                    }
                ),
        ];
        _exact = _forms.All(form => form.IsPrefixCausal);
        _formsFrom = length;
        _formsTo = LastOfForms(config, length);
    }

    /// <summary>The longest sequence whose layers have the forms that they have at this length.</summary>
    private static int LastOfForms(ReformerConfig config, int length)
    {
        (bool, bool) Chunked(int at)
        {
            long padded = ModelPass.PaddedLength(config, at, fullAttention: false);
            return (padded > config.LshAttnChunkLength, padded > config.LocalAttnChunkLength);
        }

        long largest = Math.Max(config.LshAttnChunkLength, config.LocalAttnChunkLength);
        (bool, bool) now = Chunked(length);
        int last = length;
        while (last <= largest && Chunked(last + 1) == now)
        {
            last++;
        }

        last = last > largest ? int.MaxValue : last;
        long? crossover = config.AttnLayers.Contains(AttentionKind.Auto) ? AttentionCost.Crossover(config) : null;
        return length < crossover ? (int)Math.Min(last, crossover.Value - 1) : last;
    }

    private ModelPass MakePass(int length, bool fullAttention, PassAllocator allocate) =>
        new(
            _model.Config,
            _model.ModelParameters,
            new PassShape(
                1, length, _options.Rounds ?? _model.Config.NumHashes, fullAttention, Backward: false, Inspect: false),
            keep: null,
            allocate
        );

    /// <summary>
    /// The whole sequence through the forward pass of the model, whose layers leave their keys, values and buckets
    /// here.
    /// </summary>
    private TensorView Fill(ReadOnlySpan<int> ids)
    {
        ReformerConfig config = _model.Config;
        int length = ids.Length;
        _length = 0; // until all layers are filled
        var kept = new TensorShape(1, length, ProjectedWidth);
        for (int layer = 0; layer < _layers.Length; layer++)
        {
            _layers[layer]
                .Prepare(
                    _model, _forms[layer],
                    Rows(layer, Math.Max(length, Math.Min(_most, (long)length + FirstCapacity))));
        }

        bool ring = _layers.Any(layer => layer.Rows < length);
        using Tensor? keys = ring ? new Tensor(_model.Context, kept) : null;
        using Tensor? values = ring ? new Tensor(_model.Context, kept) : null;
        int hashed = Array.FindIndex(_forms, form => form.Kind == AttentionKind.Lsh);
        using Tensor? buckets =
            hashed < 0
                ? null
                : new Tensor(
                    _model.Context, _forms[hashed].BucketsShape(1, config.NumAttentionHeads, length), DType.Int32);
        _prompt.Reshape(1, length);
        ids.CopyTo(_prompt.Ids);
        TensorView logits = _model.NextTokenLogits(
            _prompt,
            _options,
            (pass, layer, block) =>
            {
                LayerCache cache = _layers[layer];
                bool whole = cache.Rows >= length;
                TensorView key = whole ? cache.Keys!.View.Part(0, kept) : keys!;
                TensorView value = whole ? cache.Values!.View.Part(0, kept) : values!;
                bool lsh = _forms[layer].Kind == AttentionKind.Lsh;
                (
                    block with
                    {
                        KeptQuery = _forms[layer].SharedQk ? key : default,
                        KeptKey = _forms[layer].SharedQk ? default : key,
                        KeptValue = value,
                        Buckets = lsh ? buckets! : block.Buckets,
                    }
                ).Forward(_model.Workspace);
                if (!whole)
                {
                    cache.CopyLastRows(key, value, length);
                }

                if (lsh)
                {
                    cache.Rotations!.View.CopyFrom(pass.Rotations);
                    new BucketRings
                    {
                        Buckets = buckets!,
                        Rings = cache.Rings!,
                        Counts = cache.Counts!,
                    }.Run(_model.Context);
                }
            }
        );
        _length = length;
        return logits;
    }

    private TensorView Step(int id)
    {
        ModelPass pass = _step ??= MakePass(
            1,
            fullAttention: true,
            (_, shape, type) =>
            {
                var tensor = new Tensor(_model.Context, shape, type);
                _buffers.Add(tensor);
                return tensor.View;
            }
        );
        int position = _length;
        _length = 0; // until all layers have it
        _id[0] = id;
        pass.Ids.CopyFrom<int>(_id);
        pass.RangeReport.Zero();
        (pass.Embedding(_options) with { FirstPosition = position }).Forward(_model.Workspace);
        for (int layer = 0; layer < _layers.Length; layer++)
        {
            _layers[layer]
                .Grow(
                    Rows(layer, position + 1), Rows(layer, Math.Min(_most, Math.Max(position + 1, 2L * position))),
                    position);
            Decode(pass, layer, position).Run(_model.Workspace);
        }

        _model.CheckRange(pass.RangeReport, position, 1);
        pass.FinalNorm(0, 1, 0, _options).Forward(_model.Workspace);
        pass.Project(1).Forward(_model.Workspace);
        _length = position + 1;
        return pass.Logits;
    }

    private ReversibleBlockDecode Decode(ModelPass pass, int layer, long position)
    {
        ReversibleBlock block = pass.Block(layer, _options, masked: false, keep: false);
        LayerCache cache = _layers[layer];
        return new()
        {
            Layer = layer,
            Attention = _forms[layer],
            Heads = block.Heads,
            Activation = block.Activation,
            LayerNormEpsilon = block.LayerNormEpsilon,
            Residual = block.Residual,
            GridExponent = block.GridExponent,
            Position = position,
            Stream1 = block.Stream1,
            Stream2 = block.Stream2,
            Keys = cache.Keys,
            Values = cache.Values,
            Rotations = cache.Rotations,
            Rings = cache.Rings,
            Counts = cache.Counts,
            RangeReport = block.RangeReport,
            Parameters = block.Parameters,
        };
    }

    private long ProjectedWidth => (long)_model.Config.NumAttentionHeads * _model.Config.AttentionHeadSize;

    /// <summary>Rows that a layer needs for so many tokens: a local one those of its window.</summary>
    private long Rows(int layer, long tokens) =>
        _forms[layer].Kind == AttentionKind.Local
            ? Math.Min(tokens, (_forms[layer].ChunksBefore + 1) * _forms[layer].ChunkLength)
            : tokens;

    /// <summary>The cache of one layer.</summary>
    private sealed class LayerCache : IDisposable
    {
        public Tensor? Keys { get; private set; }

        public Tensor? Values { get; private set; }

        public Tensor? Rotations { get; private set; }

        public Tensor? Rings { get; private set; }

        public Tensor? Counts { get; private set; }

        public long Rows => Keys?.Shape[1] ?? 0;

        /// <summary>Empties it and makes room.</summary>
        public void Prepare(ReformerModel model, AttentionOptions form, long rows)
        {
            Dispose();
            ReformerConfig config = model.Config;
            long heads = config.NumAttentionHeads;
            var shape = new TensorShape(1, rows, heads * config.AttentionHeadSize);
            Keys = new Tensor(model.Context, shape);
            Values = new Tensor(model.Context, shape);
            if (form.Kind == AttentionKind.Lsh)
            {
                Rotations = new Tensor(
                    model.Context, form.RotationsShape(config.Lsh.Rotations, 1, heads, config.AttentionHeadSize));
                Rings = new Tensor(model.Context, form.RingsShape(1, heads), DType.Int32);
                Counts = new Tensor(model.Context, form.CountsShape(1, heads), DType.Int32);
                Counts.Zero();
            }
        }

        /// <summary>
        /// Moves to more rows if there are fewer than needed. A row keeps its place, since rows wrap only when there
        /// are no more to come.
        /// </summary>
        public void Grow(long needed, long wanted, long used)
        {
            if (Rows >= needed)
            {
                return;
            }

            Keys = Larger(Keys!, wanted, used);
            Values = Larger(Values!, wanted, used);
        }

        /// <summary>
        /// Takes the last rows of a prompt that is longer than the cache: row p mod S holds position p.
        /// </summary>
        public void CopyLastRows(TensorView keys, TensorView values, long length)
        {
            foreach ((TensorView from, TensorView to) in new[] { (keys, Keys!.View), (values, Values!.View) })
            {
                long width = from.Shape[2];
                long start = length - Rows;
                long wrapped = start % Rows; // place of position `start`
                Copy(start, wrapped, Rows - wrapped);
                Copy(length - wrapped, 0, wrapped);

                void Copy(long position, long row, long count)
                {
                    if (count > 0)
                    {
                        var shape = new TensorShape(count, width);
                        to.Part(row * width, shape).CopyFrom(from.Part(position * width, shape));
                    }
                }
            }
        }

        public void Dispose()
        {
            Keys?.Dispose();
            Values?.Dispose();
            Rotations?.Dispose();
            Rings?.Dispose();
            Counts?.Dispose();
            Keys = Values = Rotations = Rings = Counts = null;
        }

        private static Tensor Larger(Tensor tensor, long rows, long used)
        {
            long width = tensor.Shape[2];
            var larger = new Tensor(tensor.Context, new TensorShape(1, rows, width));
            var shape = new TensorShape(used, width);
            larger.View.Part(0, shape).CopyFrom(tensor.View.Part(0, shape));
            tensor.Dispose();
            return larger;
        }
    }
}
