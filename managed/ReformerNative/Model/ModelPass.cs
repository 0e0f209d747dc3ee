using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>What fixes the buffers of a pass.</summary>
internal readonly record struct PassShape(
    int Batch, int Length, int Rounds, bool FullAttention, bool Backward, bool Inspect);

/// <summary>What one layer keeps of its forward pass; the rest is absent.</summary>
internal readonly record struct KeptTensors(
    TensorView Stream1, TensorView Stream2, TensorView Query, TensorView Key, TensorView Value, TensorView LogSumExp,
    TensorView Hidden, TensorView Result, TensorView Buckets);

/// <summary>Gives a pass its buffers, or only their shapes.</summary>
internal delegate TensorView PassAllocator(string name, TensorShape shape, DType type);

/// <summary>
/// The buffers of a pass of one shape, and the ops of the model on them. A memory plan and a run go through the same
/// code; the plan's buffers have shapes only.
/// </summary>
internal sealed class ModelPass
{
    /// <summary>
    /// Rows that final norm and head handle at a time, so that nothing of size [B·T, 2E] or [B·T, V] exists.
    /// </summary>
    public const int HeadRows = 4096;

    private readonly ReformerConfig _config;
    private readonly ModelParameters _parameters;
    private readonly PassShape _shape;
    private readonly AttentionKind[] _kinds; // none is Auto
    private readonly long _padded;
    private readonly BucketFactors _factors;
    private readonly KeepActivations[] _keep;
    private readonly KeptTensors[] _kept;
    private readonly TensorView[] _buckets;
    private readonly Activation _activation;
    private readonly AttentionPreset _lsh;

    /// <summary>Allocates.</summary>
    /// <param name="config">The model's.</param>
    /// <param name="parameters">The model's.</param>
    /// <param name="shape">What fixes the buffers.</param>
    /// <param name="keep">With gradients: what each layer keeps; null for nothing.</param>
    /// <param name="allocate">Gives the buffers.</param>
    public ModelPass(
        ReformerConfig config, ModelParameters parameters, PassShape shape, IReadOnlyList<KeepActivations>? keep,
        PassAllocator allocate)
    {
        _config = config;
        _parameters = parameters;
        _shape = shape;
        _kinds = [.. config.AttnLayers.Select(kind => AttentionCost.Resolve(config, kind, shape.Length))];
        _padded = PaddedLength(config, shape.Length, shape.FullAttention);
        _factors = config.NumBuckets is { } factors ? new BucketFactors([.. factors]) : default;
        _activation = ConfigRules.Activations[config.HiddenAct];
        _lsh = config.Lsh;
        long b = shape.Batch;
        long t = shape.Length;
        long e = config.HiddenSize;
        long heads = config.NumAttentionHeads;
        Ids = allocate("tokens", new TensorShape(b, t), DType.Int32);
        Labels = allocate("tokens", new TensorShape(b * t), DType.Int32);
        Mask = allocate("tokens", new TensorShape(b, t), DType.UInt8);
        RangeReport = allocate("reports", new TensorShape(4), DType.Int64);
        Stream1 = allocate("streams", new TensorShape(b, t, e), DType.Float32);
        Stream2 = allocate("streams", new TensorShape(b, t, e), DType.Float32);
        if (shape.Backward)
        {
            GradStream1 = allocate("stream gradients", new TensorShape(b, t, e), DType.Float32);
            GradStream2 = allocate("stream gradients", new TensorShape(b, t, e), DType.Float32);
        }

        _keep = [.. keep ?? new KeepActivations[config.AttnLayers.Count]];
        _kept = [.. _keep.Select((level, layer) => Keep(layer, level, allocate))];
        int hashed = Enumerable.Range(0, config.AttnLayers.Count).Count(IsHashed);
        if (hashed > 0)
        {
            AttentionOptions options = Attention(FirstHashed, dropout: false, masked: false);
            Rotations = allocate(
                "rotations", options.RotationsShape(_lsh.Rotations, b, heads, config.AttentionHeadSize), DType.Float32);
            _buckets = AllocateBuckets(options.BucketsShape(b, heads, t), allocate);
        }
        else
        {
            _buckets = new TensorView[config.AttnLayers.Count];
        }

        bool classifier = config.Task == ReformerTask.SequenceClassification;
        long headRows = classifier ? b : Math.Min(HeadRows, b * t);
        HeadChunks = classifier ? 1 : (int)((b * t + HeadRows - 1) / HeadRows);
        Hidden = allocate("head", new TensorShape(headRows, config.FinalWidth), DType.Float32);
        Statistics = allocate("reports", new TensorShape(HeadChunks, 3), DType.Float64);
        if (classifier)
        {
            Pooled = allocate("head", new TensorShape(b, e), DType.Float32);
            HiddenGradient = shape.Backward
                ? allocate("head", new TensorShape(b, config.FinalWidth), DType.Float32)
                : default;
        }

        if (shape.Inspect)
        {
            AttentionResult = allocate(
                "inspection", new TensorShape(b, t, heads * config.AttentionHeadSize), DType.Float32);
        }

        Logits = allocate("head", new TensorShape(shape.Inspect ? headRows : b, HeadOutputs), DType.Float32);
    }

    public PassShape Shape => _shape;

    public TensorView Ids { get; }

    public TensorView Labels { get; }

    public TensorView Mask { get; }

    public TensorView RangeReport { get; }

    public TensorView Stream1 { get; }

    public TensorView Stream2 { get; }

    public TensorView GradStream1 { get; }

    public TensorView GradStream2 { get; }

    /// <summary>One for all layers: they are drawn again before each use. Absent when no layer hashes.</summary>
    public TensorView Rotations { get; }

    public TensorView Hidden { get; }

    /// <summary>Classifier only: its hidden layer [B, E], then the gradient of it.</summary>
    public TensorView Pooled { get; }

    /// <summary>Classifier only: the gradient of <see cref="Hidden"/>. Other heads write theirs in place.</summary>
    public TensorView HiddenGradient { get; }

    public TensorView Statistics { get; }

    public TensorView AttentionResult { get; }

    public TensorView Logits { get; }

    public int HeadChunks { get; }

    public long RowCount => (long)_shape.Batch * _shape.Length;

    public long HeadOutputs => _parameters.Layout.Specs[_parameters.Layout.HeadWeight].Shape[0];

    /// <summary>
    /// The masked positions imagined behind the sequence count as padding, as padding in the input does.
    /// </summary>
    public bool IsPadded => _padded > _shape.Length;

    private int FirstHashed => Enumerable.Range(0, _config.AttnLayers.Count).First(IsHashed);

    /// <summary>
    /// The length a sequence is thought to be padded to: a multiple of all chunk lengths in use, unless it is no longer
    /// than the smallest of them.
    /// </summary>
    public static long PaddedLength(ReformerConfig config, long length, bool fullAttention)
    {
        long common = 1;
        long smallest = long.MaxValue;
        foreach (AttentionKind kind in config.AttnLayers.Distinct())
        {
            long chunk = AttentionCost.Resolve(config, kind, length) switch
            {
                AttentionKind.Lsh when !fullAttention => config.LshAttnChunkLength,
                AttentionKind.Local => config.LocalAttnChunkLength,
                _ => 0,
            };
            if (chunk > 0)
            {
                common = checked(common / Gcd(common, chunk) * chunk);
                smallest = Math.Min(smallest, chunk);
            }
        }

        return length > smallest ? checked((length + common - 1) / common * common) : length;
    }

    /// <summary>
    /// Whether a layer hashes at this length: one no longer than its chunk attends to the whole sequence.
    /// </summary>
    public bool IsHashed(int layer) =>
        _kinds[layer] == AttentionKind.Lsh && !_shape.FullAttention && _padded > _config.LshAttnChunkLength;

    /// <summary>Whether the layers keep what is asked for; null asks for nothing.</summary>
    public bool Keeps(IReadOnlyList<KeepActivations>? keep)
    {
        for (int layer = 0; layer < _keep.Length; layer++)
        {
            if (_keep[layer] != (keep is null ? KeepActivations.Nothing : keep[layer]))
            {
                return false;
            }
        }

        return true;
    }

    /// <summary>What a layer's kept buffers take at a level, in bytes.</summary>
    public long KeptBytes(int layer, KeepActivations level)
    {
        long bytes = 0;
        Keep(layer, level, (_, shape, type) =>
        {
            var view = TensorView.Meta(shape, type);
            bytes = checked(bytes + view.ByteCount);
            return view;
        });
        return bytes;
    }

    public AttentionOptions Attention(int layer, bool dropout, bool masked)
    {
        bool shared = _config.AttnLayers[layer] is AttentionKind.Lsh or AttentionKind.Auto;
        float probability = !dropout ? 0
            : shared ? (float)_config.LshAttentionProbsDropoutProb : (float)_config.LocalAttentionProbsDropoutProb;
        if (IsHashed(layer))
        {
            return AttentionOptions.Lsh(
                _lsh, _config.IsDecoder, _config.LshAttnChunkLength, _shape.Rounds, _factors) with
            {
                PadBucket = masked || IsPadded,
                PaddedLength = _padded,
                LogitScale = (float)(_config.LshLogitScale ?? 0),
                Dropout = probability,
            };
        }

        if (_kinds[layer] == AttentionKind.Local && _padded > _config.LocalAttnChunkLength)
        {
            return AttentionOptions.Local(
                _config.IsDecoder, _config.LocalAttnChunkLength, _config.LocalNumChunksBefore,
                _config.LocalNumChunksAfter, _config.LocalWrap) with
            {
                PaddedLength = _padded,
                Dropout = probability,
            };
        }

        AttentionOptions full = AttentionOptions.Full(_config.IsDecoder) with { Dropout = probability };
        return shared
            ? full with { SharedQk = true, KeyNorm = _lsh.KeyNorm, LogitScale = (float)(_config.LshLogitScale ?? 0) }
            : full;
    }

    public Embedding Embedding(in RunOptions options) => new()
    {
        Positions = _config.Positions,
        Dropout = options.Dropout ? (float)_config.HiddenDropoutProb : 0,
        Seed = options.Seed,
        Step = options.Step,
        ExactResidual = _config.Residual == ResidualMode.Exact,
        GridExponent = _config.ResidualGridExponent,
        Ids = Ids,
        Word = _parameters.Values[_parameters.Layout.Word],
        Position = _parameters.Positions,
        Stream1 = Stream1,
        Stream2 = Stream2,
        GradStream1 = GradStream1,
        GradStream2 = GradStream2,
        GradWord = _shape.Backward ? _parameters.Gradients[_parameters.Layout.Word] : default,
        GradPosition = _shape.Backward ? _parameters.PositionGradients : default,
        RangeReport = _config.Residual == ResidualMode.Exact ? RangeReport : default,
    };

    /// <summary>A layer.</summary>
    /// <param name="layer">Its index.</param>
    /// <param name="options">Those of the pass.</param>
    /// <param name="masked">Whether some token is padding.</param>
    /// <param name="keep">Whether the layer keeps what this pass has buffers for; only a pass with gradients needs
    /// that.</param>
    public ReversibleBlock Block(int layer, in RunOptions options, bool masked, bool keep)
    {
        KeptTensors kept = keep ? _kept[layer] : default;
        return Block(layer, options, masked) with
        {
            Buckets = kept.Buckets.IsAbsent ? _buckets[layer] : kept.Buckets,
            AttentionResult = kept.Result.IsAbsent ? AttentionResult : kept.Result,
            KeptStream1 = kept.Stream1,
            KeptStream2 = kept.Stream2,
            KeptQuery = kept.Query,
            KeptKey = kept.Key,
            KeptValue = kept.Value,
            KeptLogSumExp = kept.LogSumExp,
            KeptHidden = kept.Hidden,
        };
    }

    private ReversibleBlock Block(int layer, in RunOptions options, bool masked) => new()
    {
        Layer = layer,
        Seed = options.Seed,
        Step = options.Step,
        Attention = Attention(layer, options.Dropout, masked),
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
        Mask = masked ? Mask : default,
        Rotations = IsHashed(layer) ? Rotations : default,
        RangeReport = _config.Residual == ResidualMode.Exact ? RangeReport : default,
        Parameters = _parameters.Blocks[layer],
        Gradients = _shape.Backward ? _parameters.BlockGradients[layer] : null,
    };

    /// <summary>
    /// Final norm of rows of the streams into the first rows of <see cref="Hidden"/> (from <paramref name="hiddenRow"/>
    /// on).
    /// </summary>
    public FinalNorm FinalNorm(long firstRow, long rows, long hiddenRow, in RunOptions options)
    {
        long e = _config.HiddenSize;
        ParameterLayout layout = _parameters.Layout;
        TensorView hidden = Hidden.Rows(hiddenRow, rows);

        // Dropout counts elements from the first row of a call, so each stretch of rows gets a seed of its own.
        ulong stretch = (ulong)(firstRow / HeadRows);
        return new()
        {
            Combine = _config.FinalCombine,
            Epsilon = (float)_config.LayerNormEps,
            Dropout = options.Dropout ? (float)_config.HiddenDropoutProb : 0,
            Seed = options.Seed ^ (stretch * 0x9E3779B97F4A7C15UL),
            Step = options.Step,
            Stream1 = Rows(Stream1),
            Stream2 = Rows(Stream2),
            Weight = _parameters.Values[layout.FinalNormWeight],
            Bias = _parameters.Values[layout.FinalNormBias],
            Y = hidden,
            GradY = HiddenGradient.IsAbsent ? hidden : HiddenGradient.Rows(hiddenRow, rows),
            GradStream1 = _shape.Backward ? Rows(GradStream1) : default,
            GradStream2 = _shape.Backward ? Rows(GradStream2) : default,
            GradWeight = _shape.Backward ? _parameters.Gradients[layout.FinalNormWeight] : default,
            GradBias = _shape.Backward ? _parameters.Gradients[layout.FinalNormBias] : default,
        };

        TensorView Rows(TensorView stream) => stream.Reshape(new TensorShape(RowCount, e)).Rows(firstRow, rows);
    }

    /// <summary>
    /// Loss of the first rows of the head's input; its gradient takes the input's place. Without a scale there are no
    /// gradients, and the target is not smoothed.
    /// </summary>
    public HeadLoss HeadLoss(long firstRow, long rows, int chunk, long normalizer, float? lossScale)
    {
        TensorView x = (Pooled.IsAbsent ? Hidden : Pooled).Rows(0, rows);
        ParameterLayout layout = _parameters.Layout;
        return new()
        {
            IgnoreIndex = Data.TokenBatch.IgnoredLabel,
            LabelSmoothing = lossScale is not null ? (float)_config.LabelSmoothing : 0,
            LossScale = lossScale ?? 1,
            Normalizer = normalizer,
            Chunk = _config.ChunkSizeLmHead,
            X = x,
            Weight = _parameters.Values[layout.HeadWeight],
            Bias = _parameters.Values[layout.HeadBias],
            Labels = Labels.Rows(firstRow, rows),
            Statistics = Statistics.Rows(chunk, 1).Reshape(new TensorShape(3)),
            GradX = _shape.Backward ? x : default,
            GradWeight = _shape.Backward ? _parameters.Gradients[layout.HeadWeight] : default,
            GradBias = _shape.Backward ? _parameters.Gradients[layout.HeadBias] : default,
        };
    }

    /// <summary>
    /// The classifier's hidden layer: <see cref="Hidden"/> to <see cref="Pooled"/>, and the gradients back.
    /// </summary>
    public Linear Pool()
    {
        ParameterLayout layout = _parameters.Layout;
        return new()
        {
            Activation = Activation.Tanh,
            X = Hidden,
            Weight = _parameters.Values[layout.ClassifierWeight],
            Bias = _parameters.Values[layout.ClassifierBias],
            Y = Pooled,
            GradY = Pooled,
            GradX = HiddenGradient,
            GradWeight = _shape.Backward ? _parameters.Gradients[layout.ClassifierWeight] : default,
            GradBias = _shape.Backward ? _parameters.Gradients[layout.ClassifierBias] : default,
        };
    }

    /// <summary>Outputs of the head for the first rows of its input.</summary>
    public Linear Project(long rows) => new()
    {
        X = (Pooled.IsAbsent ? Hidden : Pooled).Rows(0, rows),
        Weight = _parameters.Values[_parameters.Layout.HeadWeight],
        Bias = _parameters.Values[_parameters.Layout.HeadBias],
        Y = Logits.Rows(0, rows),
    };

    /// <summary>The largest scratch that any op of a pass needs, in bytes.</summary>
    public long WorkspaceBytes(ReformerContext context)
    {
        var options = new RunOptions { Dropout = _shape.Backward };
        long bytes = Embedding(options).WorkspaceBytes(context, Pass.Forward);
        long rows = Hidden.Shape[0];
        for (int layer = 0; layer < _config.AttnLayers.Count; layer++)
        {
            ReversibleBlock block = Block(layer, options, masked: true, keep: _shape.Backward);
            bytes = Math.Max(bytes, block.WorkspaceBytes(context, Pass.Forward));
            bytes = _shape.Backward ? Math.Max(bytes, block.WorkspaceBytes(context, Pass.Backward)) : bytes;
        }

        FinalNorm norm = FinalNorm(0, Math.Min(rows, RowCount), 0, options);
        HeadLoss loss = HeadLoss(0, rows, 0, 1, _shape.Backward ? 1 : null);
        bytes = Math.Max(bytes, norm.WorkspaceBytes(context, Pass.Forward));
        bytes = Math.Max(bytes, loss.WorkspaceBytes(context, Pass.Forward));
        if (_shape.Backward)
        {
            bytes = Math.Max(bytes, norm.WorkspaceBytes(context, Pass.Backward));
            bytes = Math.Max(bytes, loss.WorkspaceBytes(context, Pass.Backward));
            bytes = Math.Max(bytes, Embedding(options).WorkspaceBytes(context, Pass.Backward));
        }

        return bytes;
    }

    private static long Gcd(long a, long b) => b == 0 ? a : Gcd(b, a % b);

    /// <summary>
    /// The buffers of what a layer keeps. With float residuals its hashes are kept anyway, in <see cref="_buckets"/>.
    /// </summary>
    private KeptTensors Keep(int layer, KeepActivations level, PassAllocator allocate)
    {
        if (level == KeepActivations.Nothing)
        {
            return default;
        }

        long b = _shape.Batch;
        long t = _shape.Length;
        long heads = _config.NumAttentionHeads;
        var stream = new TensorShape(b, t, _config.HiddenSize);
        KeptTensors kept = new()
        {
            Stream1 = allocate("kept streams", stream, DType.Float32),
            Stream2 = allocate("kept streams", stream, DType.Float32),
        };
        if (level == KeepActivations.Streams)
        {
            return kept;
        }

        AttentionOptions attention = Attention(layer, dropout: false, masked: false);
        var merged = new TensorShape(b, t, heads * _config.AttentionHeadSize);
        return kept with
        {
            Query = Activations(merged),
            Key = attention.SharedQk ? default : Activations(merged),
            Value = Activations(merged),
            LogSumExp = Activations(new TensorShape(b, heads, t)),
            Hidden = Activations(new TensorShape(b * t, _config.FeedForwardSize)),
            Result = Activations(merged),
            Buckets = IsHashed(layer) && _config.Residual == ResidualMode.Exact
                ? allocate("kept activations", attention.BucketsShape(b, heads, t), DType.Int32)
                : default,
        };

        TensorView Activations(TensorShape shape) => allocate("kept activations", shape, DType.Float32);
    }

    /// <summary>
    /// Float residuals: each hashed layer keeps its hashes for the backward pass; without one they share a buffer.
    /// Exact residuals hash again.
    /// </summary>
    private TensorView[] AllocateBuckets(TensorShape shape, PassAllocator allocate)
    {
        var buckets = new TensorView[_config.AttnLayers.Count];
        if (_config.Residual == ResidualMode.Exact && !_shape.Inspect)
        {
            return buckets;
        }

        TensorView one = default;
        for (int layer = 0; layer < buckets.Length; layer++)
        {
            if (IsHashed(layer))
            {
                bool own = _shape.Backward && _config.Residual == ResidualMode.Float;
                one = own || one.IsAbsent ? allocate("hashes", shape, DType.Int32) : one;
                buckets[layer] = one;
            }
        }

        return buckets;
    }
}
