using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>
/// The two residual streams of a pass and what changes them: the embedding that they start from and the layers. A layer
/// turns the streams into those behind it, in place; its backward pass turns them back and the gradients with them.
/// </summary>
internal sealed class LayerStack
{
    private readonly ReformerConfig _config;
    private readonly ModelParameters _parameters;
    private readonly PassShape _shape;
    private readonly RangeReport _range;
    private readonly Activation _activation;
    private readonly TensorView _ids;
    private readonly TensorView _mask;
    private readonly TensorView _attentionResult;
    private bool _masked;

    /// <summary>Allocates.</summary>
    /// <param name="config">The model's.</param>
    /// <param name="parameters">The model's.</param>
    /// <param name="shape">What fixes the buffers.</param>
    /// <param name="keep">With gradients: what each layer keeps; null for nothing.</param>
    /// <param name="allocate">Gives the buffers.</param>
    public LayerStack(
        ReformerConfig config, ModelParameters parameters, PassShape shape, IReadOnlyList<KeepActivations>? keep,
        PassAllocator allocate)
    {
        _config = config;
        _parameters = parameters;
        _shape = shape;
        Forms = new LayerForms(config, shape.Length, shape.Rounds, shape.FullAttention);
        _activation = ConfigRules.Activations[config.HiddenAct];
        long b = shape.Batch;
        long t = shape.Length;
        long heads = config.NumAttentionHeads;
        var stream = new TensorShape(b, t, config.HiddenSize);
        _ids = allocate("tokens", new TensorShape(b, t), DType.Int32);
        _mask = allocate("tokens", new TensorShape(b, t), DType.UInt8);
        _range = new RangeReport(config, allocate);
        Stream1 = allocate("streams", stream, DType.Float32);
        Stream2 = allocate("streams", stream, DType.Float32);
        if (shape.Backward)
        {
            GradStream1 = allocate("stream gradients", stream, DType.Float32);
            GradStream2 = allocate("stream gradients", stream, DType.Float32);
        }

        if (Forms.FirstHashed >= 0)
        {
            AttentionOptions options = Forms.Attention(Forms.FirstHashed, dropout: false, masked: false);
            Rotations = allocate(
                "rotations", options.RotationsShape(config.Lsh.Rotations, b, heads, config.AttentionHeadSize),
                DType.Float32);
        }

        Kept = new KeptLayers(config, Forms, shape, keep, allocate);
        _attentionResult = shape.Inspect
            ? allocate("inspection", new TensorShape(b, t, heads * config.AttentionHeadSize), DType.Float32)
            : default;
    }

    public TensorView Stream1 { get; }

    public TensorView Stream2 { get; }

    public TensorView GradStream1 { get; }

    public TensorView GradStream2 { get; }

    /// <summary>One for all layers: they are drawn again before each use. Absent when no layer hashes.</summary>
    public TensorView Rotations { get; }

    public LayerForms Forms { get; }

    public KeptLayers Kept { get; }

    /// <summary>What <see cref="CheckRange(long)"/> looks at; absent with float residuals.</summary>
    public TensorView RangeReport => _range.View;

    /// <summary>Takes the tokens.</summary>
    /// <param name="ids">[B, T].</param>
    /// <param name="mask">[B, T], 0 for padding; empty when every token is real.</param>
    /// <exception cref="ArgumentException">An id is impossible.</exception>
    public void Load(ReadOnlySpan<int> ids, ReadOnlySpan<byte> mask)
    {
        int place = ids.IndexOfAnyExceptInRange(0, _config.VocabSize - 1);
        if (place >= 0)
        {
            throw new ArgumentException(
                $"ids: expected 0 .. {_config.VocabSize - 1}, found {ids[place]} "
                + $"in example {place / _shape.Length}, token {place % _shape.Length}",
                nameof(ids));
        }

        _ids.CopyFrom(ids);
        _masked = mask.Contains((byte)0);
        if (_masked)
        {
            _mask.CopyFrom(mask);
        }
    }

    /// <summary>Takes tokens that an op drew, all of them real.</summary>
    public void Load(TensorView ids)
    {
        _ids.CopyFrom(ids);
        _masked = false;
    }

    /// <summary>Starts the streams: words plus positions in both.</summary>
    /// <param name="workspace">Scratch memory.</param>
    /// <param name="options">Those of the pass.</param>
    /// <param name="firstPosition">Position of the first token.</param>
    public void Embed(Workspace workspace, in RunOptions options, long firstPosition = 0)
    {
        _range.Clear();
        (Embedding(options) with { FirstPosition = firstPosition }).Forward(workspace);
    }

    /// <summary>Embedding and all layers.</summary>
    /// <param name="workspace">Scratch memory.</param>
    /// <param name="options">Those of the pass.</param>
    /// <param name="keep">Whether layers keep what this stack has buffers for: a backward pass follows.</param>
    /// <param name="trace">Takes what is computed; null for nobody.</param>
    /// <exception cref="ResidualRangeException">A residual stream left its exact range.</exception>
    public void Forward(Workspace workspace, in RunOptions options, bool keep, ModelTrace? trace)
    {
        Embed(workspace, options);
        if (trace is not null)
        {
            trace.Embeddings = Stream1.ToArray<float>();
        }

        for (int layer = 0; layer < Forms.Count; layer++)
        {
            DrawRotations(workspace.Context, layer, options);
            ReversibleBlock block = Block(layer, options, keep);
            block.Forward(workspace);
            trace?.SetLayer(layer, new LayerTrace(
                block.AttentionResult.ToArray<float>(),
                Stream1.ToArray<float>(),
                Stream2.ToArray<float>(),
                Forms.IsHashed(layer) ? block.Buckets.ToArray<int>() : null,
                Forms.IsHashed(layer) ? Rotations.ToArray<float>() : null));
        }

        CheckRange();
    }

    /// <summary>
    /// Turns the streams and their gradients back into those of the embedding, and adds to the gradients of the
    /// parameters on the way.
    /// </summary>
    public void Backward(Workspace workspace, in RunOptions options)
    {
        for (int layer = Forms.Count - 1; layer >= 0; layer--)
        {
            ReversibleBlock block = Block(layer, options, keep: true);
            if (block.KeptHidden.IsAbsent)
            {
                DrawRotations(workspace.Context, layer, options); // else nothing is hashed again
            }

            block.Backward(workspace);
        }

        Embedding(options).Backward(workspace);
    }

    /// <summary>
    /// Compares the streams that a backward pass recovered with the embeddings that its forward pass started from,
    /// which are computed again. The gradients of the streams have been used up: their memory takes the embeddings.
    /// </summary>
    public Reconstruction MeasureReconstruction(Workspace workspace, in RunOptions options)
    {
        (Embedding(options) with { Stream1 = GradStream1, Stream2 = default }).Forward(workspace);
        return Reconstruction.Of(GradStream1, Stream1).And(Reconstruction.Of(GradStream1, Stream2));
    }

    /// <summary>Throws if a value left the exact range since <see cref="Embed"/>.</summary>
    /// <param name="firstPosition">Position of the first token.</param>
    /// <exception cref="ResidualRangeException">One did.</exception>
    public void CheckRange(long firstPosition = 0) => _range.Check(firstPosition, _shape.Length);

    /// <summary>The same with a copy of <see cref="RangeReport"/>.</summary>
    public void CheckRange(ReadOnlySpan<long> report, long firstPosition) =>
        _range.Check(report, firstPosition, _shape.Length);

    /// <summary>Rotations are a function of seed, step and layer, so the backward pass draws the same again.</summary>
    public void DrawRotations(ReformerContext context, int layer, in RunOptions options)
    {
        if (!Forms.IsHashed(layer))
        {
            return;
        }

        if (options.Rotations is { } given)
        {
            float[] rotations =
                given[layer]
                ?? throw new ArgumentException(
                    $"rotations: expected some for layer {layer}, which hashes, found none", nameof(options));
            Rotations.CopyFrom<float>(rotations);
            return;
        }

        new RandomNormal
        {
            Seed = _config.HashSeed is int seed ? (ulong)seed : options.Seed,
            Step = _config.HashSeed is null ? options.Step : 0,
            Layer = layer,
            Site = RandomSite.Rotations,
            StandardDeviation = 1,
            Destination = Rotations,
        }.Run(context);
    }

    /// <summary>A layer.</summary>
    /// <param name="layer">Its index.</param>
    /// <param name="options">Those of the pass.</param>
    /// <param name="keep">Whether the layer keeps what this stack has buffers for.</param>
    public ReversibleBlock Block(int layer, in RunOptions options, bool keep) => Block(layer, options, keep, _masked);

    /// <summary>Takes over the streams of one row of another stack, whose shape does not matter.</summary>
    public void CopyRow(LayerStack from, long row)
    {
        Stream1.Reshape(new TensorShape(1, _config.HiddenSize)).CopyFrom(Row(from.Stream1));
        Stream2.Reshape(new TensorShape(1, _config.HiddenSize)).CopyFrom(Row(from.Stream2));

        TensorView Row(TensorView stream) =>
            stream.Reshape(new TensorShape(from._shape.Rows, _config.HiddenSize)).Rows(row, 1);
    }

    /// <summary>The largest scratch that an op of the stack needs, in bytes.</summary>
    public long WorkspaceBytes(ReformerContext context)
    {
        var options = new RunOptions { Dropout = _shape.Backward };
        Embedding embedding = Embedding(options);
        long bytes = embedding.WorkspaceBytes(context, Pass.Forward);
        bytes = _shape.Backward ? Math.Max(bytes, embedding.WorkspaceBytes(context, Pass.Backward)) : bytes;
        for (int layer = 0; layer < Forms.Count; layer++)
        {
            ReversibleBlock block = Block(layer, options, keep: _shape.Backward, masked: true);
            bytes = Math.Max(bytes, block.WorkspaceBytes(context, Pass.Forward));
            bytes = _shape.Backward ? Math.Max(bytes, block.WorkspaceBytes(context, Pass.Backward)) : bytes;
        }

        return bytes;
    }

    private Embedding Embedding(in RunOptions options) => new()
    {
        Positions = _config.Positions,
        Dropout = options.Dropout ? (float)_config.HiddenDropoutProb : 0,
        Seed = options.Seed,
        Step = options.Step,
        Residual = _config.Residual,
        GridExponent = _config.ResidualGridExponent,
        Ids = _ids,
        Word = _parameters.Word,
        Position = _parameters.Positions,
        Stream1 = Stream1,
        Stream2 = Stream2,
        GradStream1 = GradStream1,
        GradStream2 = GradStream2,
        GradWord = _shape.Backward ? _parameters.WordGradient : default,
        GradPosition = _shape.Backward ? _parameters.PositionGradients : default,
        RangeReport = _range.View,
    };

    private ReversibleBlock Block(int layer, in RunOptions options, bool keep, bool masked)
    {
        KeptTensors kept = keep ? Kept[layer] : default;
        return new()
        {
            Layer = layer,
            Seed = options.Seed,
            Step = options.Step,
            Attention = Forms.Attention(layer, options.Dropout, masked),
            Heads = _config.NumAttentionHeads,
            Activation = _activation,
            LayerNormEpsilon = (float)_config.LayerNormEps,
            AttentionOutputDropout = options.Dropout ? (float)_config.HiddenDropoutProb : 0,
            FeedForwardDropout = options.Dropout ? (float)_config.HiddenDropoutProb : 0,
            Residual = _config.Residual,
            GridExponent = _config.ResidualGridExponent,
            FeedForwardChunk = _config.ChunkSizeFeedForward,
            Stream1 = Stream1,
            Stream2 = Stream2,
            GradStream1 = GradStream1,
            GradStream2 = GradStream2,
            Mask = masked ? _mask : default,
            Rotations = Forms.IsHashed(layer) ? Rotations : default,
            Buckets = kept.Buckets.IsAbsent ? Kept.Hashes(layer) : kept.Buckets,
            AttentionResult = kept.Result.IsAbsent ? _attentionResult : kept.Result,
            RangeReport = _range.View,
            Parameters = _parameters.Blocks[layer],
            Gradients = _shape.Backward ? _parameters.BlockGradients[layer] : null,
            KeptStream1 = kept.Stream1,
            KeptStream2 = kept.Stream2,
            KeptQuery = kept.Query,
            KeptKey = kept.Key,
            KeptValue = kept.Value,
            KeptLogSumExp = kept.LogSumExp,
            KeptHidden = kept.Hidden,
        };
    }
}
