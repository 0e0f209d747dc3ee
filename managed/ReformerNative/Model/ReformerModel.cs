using System.Runtime.InteropServices;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Abstractions;
using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>
/// A Reformer: embedding, reversible blocks, final norm and a head, with its parameters and gradients in the memory of
/// a context. Buffers belong to the shape of the last batch and are kept, so passes of one shape allocate nothing. The
/// caller disposes the model, before the context. One thread at a time: a call while another one is running is refused.
/// </summary>
public sealed class ReformerModel : IDisposable
{
    /// <summary>Values that are compared or copied at a time on the host.</summary>
    private const int HostChunk = 1 << 16;

    private readonly ModelGate _gate = new();
    private readonly ILogger _logger;
    private readonly ModelParameters _parameters;
    private readonly Workspace _workspace;
    private readonly List<Tensor> _buffers = [];
    private readonly long[] _rangeReport = new long[4];
    private int[] _labels = [];
    private double[] _statistics = [];
    private ModelPass? _pass;
    private RunOptions _lastBackward;
    private bool _recovered;
    private bool _masked;
    private AttentionKind _autoForm = AttentionKind.Auto; // of auto layers in the last pass

    private ReformerModel(ReformerConfig config, ReformerContext context, ILogger? logger)
    {
        Config = config;
        Context = context;
        _logger = logger ?? NullLogger.Instance;
        _parameters = new ModelParameters(config, context);
        _workspace = new Workspace(context);
    }

    /// <summary>The configuration. Once buckets have been chosen automatically it names them.</summary>
    public ReformerConfig Config { get; private set; }

    /// <summary>The context that the model works in.</summary>
    public ReformerContext Context { get; }

    /// <summary>All parameters in the order of a Hugging Face state dictionary.</summary>
    public IReadOnlyList<Parameter> Parameters => _parameters.All;

    /// <summary>Number of trainable values.</summary>
    public long ParameterCount => _parameters.Layout.Count;

    internal Workspace Workspace => _workspace;

    internal ModelParameters ModelParameters => _parameters;

    internal TensorView[] Gradients => _parameters.Gradients;

    /// <summary>
    /// Makes a model with random parameters: normal with the configuration's standard deviations, norms 1, biases 0.
    /// </summary>
    /// <param name="config">The configuration.</param>
    /// <param name="context">Where it works.</param>
    /// <param name="seed">Seed of the parameters; equal seeds give equal bits.</param>
    /// <param name="logger">Takes messages; null for none.</param>
    /// <returns>The model, which the caller disposes.</returns>
    /// <exception cref="ReformerConfigException">The configuration breaks rules.</exception>
    public static ReformerModel Create(
        ReformerConfig config, ReformerContext context, ulong seed, ILogger? logger = null)
    {
        ArgumentNullException.ThrowIfNull(config);
        ArgumentNullException.ThrowIfNull(context);
        config.Validate();
        return Make(config, context, logger, parameters => parameters.Initialize(seed));
    }

    /// <summary>
    /// Loads a checkpoint: a directory with <c>config.json</c> and <c>model.safetensors</c>, ours or Hugging Face's.
    /// </summary>
    /// <param name="directory">The directory.</param>
    /// <param name="context">Where the model works.</param>
    /// <param name="change">
    /// Changes the configuration before use (the residual, the rounds, the LSH preset: not the shape of a parameter);
    /// null leaves it.
    /// </param>
    /// <param name="logger">Takes messages; null for none.</param>
    /// <returns>The model, which the caller disposes.</returns>
    /// <exception cref="FileNotFoundException">One of the files does not exist.</exception>
    /// <exception cref="ReformerFormatException">
    /// A file is malformed, does not fit the configuration, or holds values that are not finite.
    /// </exception>
    public static ReformerModel Load(
        string directory, ReformerContext context, Func<ReformerConfig, ReformerConfig>? change = null,
        ILogger? logger = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(directory);
        ArgumentNullException.ThrowIfNull(context);
        ReformerConfig config = ReformerConfig.Load(Path.Combine(directory, ModelFile.ConfigName));
        if (change is not null)
        {
            config = change(config);
            config.Validate();
        }

        using SafetensorsReader file = SafetensorsReader.Open(Path.Combine(directory, ModelFile.WeightsName));
        ModelFile.Check(file, config);
        return Make(config, context, logger, parameters => ModelFile.Read(file, parameters));
    }

    /// <summary>
    /// Writes <c>config.json</c> and <c>model.safetensors</c>, which Hugging Face's library can load too (unless the
    /// configuration uses additions). Each file is replaced in one step.
    /// </summary>
    /// <param name="directory">The directory; it is made when it does not exist.</param>
    public void Save(string directory)
    {
        ArgumentException.ThrowIfNullOrEmpty(directory);
        using ModelGate.Visit visit = _gate.Enter();
        Directory.CreateDirectory(directory);
        ModelFile.Write(Path.Combine(directory, ModelFile.WeightsName), Config, _parameters);
        Config.Save(Path.Combine(directory, ModelFile.ConfigName));
    }

    /// <summary>
    /// Chooses the number of hash buckets by the configured rule if the configuration leaves it open and sequences of
    /// this length are hashed. A pass does this by itself; the choice then stays with the model and is saved with it.
    /// </summary>
    /// <param name="length">T, tokens of a sequence.</param>
    public void ResolveBuckets(int length)
    {
        using ModelGate.Visit visit = _gate.Enter();
        ChooseBuckets(length);
    }

    /// <summary>Computes the loss of a batch.</summary>
    /// <param name="batch">Ids, labels and perhaps a mask.</param>
    /// <param name="options">Seed, step, rounds.</param>
    /// <returns>The loss.</returns>
    /// <exception cref="ArgumentException">The length, an id or a label is impossible for this model, or no label takes
    /// part.</exception>
    /// <exception cref="ResidualRangeException">A residual stream left its exact range.</exception>
    public LossResult Evaluate(TokenBatch batch, in RunOptions options = default)
    {
        using ModelGate.Visit visit = _gate.Enter();
        ModelPass pass = Prepare(batch, options, backward: false, inspect: false);
        long count = CopyLabels(pass, batch);
        RequireLabels(count);
        RunForward(pass, batch, options, keep: false, null);
        RunHead(pass, options, count);
        return ReadLoss(pass);
    }

    /// <summary>
    /// Computes the loss of a batch and adds the gradients of its mean to the parameters' gradients. Dropout is on if
    /// the options say so.
    /// </summary>
    /// <param name="batch">Ids, labels and perhaps a mask.</param>
    /// <param name="options">Seed, step, rounds, dropout, what layers keep.</param>
    /// <param name="lossScale">Factor of the gradients; 1/n when n batches make one step.</param>
    /// <returns>The loss, unscaled.</returns>
    /// <exception cref="ArgumentException">The length, an id or a label is impossible for this model, or no label takes
    /// part.</exception>
    /// <exception cref="ResidualRangeException">A residual stream left its exact range; gradients are as they
    /// were.</exception>
    public LossResult ForwardBackward(TokenBatch batch, in RunOptions options, float lossScale = 1)
    {
        using ModelGate.Visit visit = _gate.Enter();
        ModelPass pass = Prepare(batch, options, backward: true, inspect: false);
        long count = CopyLabels(pass, batch);
        RequireLabels(count);
        RunForward(pass, batch, options, keep: true, null);
        RunHead(pass, options, count, lossScale);
        RunBackward(pass, options);
        return ReadLoss(pass); // last, since it waits for the device
    }

    /// <summary>Sets all gradients to zero.</summary>
    public void ZeroGradients()
    {
        using ModelGate.Visit visit = _gate.Enter();
        _parameters.ZeroGradients();
    }

    /// <summary>
    /// Compares the streams that the last <see cref="ForwardBackward"/> recovered with the embeddings it started from,
    /// which are computed again.
    /// </summary>
    /// <returns>The largest difference, and whether there is none.</returns>
    /// <exception cref="InvalidOperationException">The last pass had no backward part.</exception>
    public Reconstruction MeasureReconstruction()
    {
        using ModelGate.Visit visit = _gate.Enter();
        return Reconstruct();
    }

    /// <summary>
    /// Runs a pass and keeps everything it computes. Gradients, if asked for, are added to the parameters' as usual.
    /// </summary>
    /// <param name="batch">Ids, labels and perhaps a mask. Without any label that counts there is no loss.</param>
    /// <param name="options">Seed, step, rounds, rotations.</param>
    /// <param name="backward">Whether to compute gradients.</param>
    /// <returns>The results.</returns>
    public ModelTrace Trace(TokenBatch batch, in RunOptions options = default, bool backward = false)
    {
        using ModelGate.Visit visit = _gate.Enter();
        ModelPass pass = Prepare(batch, options, backward, inspect: true);
        var trace = new ModelTrace(Config.AttnLayers.Count);
        long count = CopyLabels(pass, batch);
        RunForward(pass, batch, options, backward, trace);
        TraceHead(pass, options, trace);
        if (count > 0)
        {
            RunHead(pass, options, count, backward ? 1 : null);
            trace.Loss = ReadLoss(pass);
        }

        if (backward)
        {
            RequireLabels(count);
            RunBackward(pass, options);
            trace.Reconstruction = Reconstruct();
        }

        return trace;
    }

    /// <summary>Computes the outputs of the head for what follows the last token of each example.</summary>
    /// <param name="batch">Ids; labels are not read.</param>
    /// <param name="logits">Takes [B, V] row-major.</param>
    /// <param name="options">Seed, rounds.</param>
    /// <exception cref="NotSupportedException">The model is a classifier.</exception>
    public void NextTokenLogits(TokenBatch batch, Span<float> logits, in RunOptions options = default)
    {
        using ModelGate.Visit visit = _gate.Enter();
        NextTokenLogits(batch, options).CopyTo(logits);
    }

    /// <summary>Frees parameters, gradients and buffers.</summary>
    /// <exception cref="InvalidOperationException">Another thread is in a call of the model.</exception>
    public void Dispose()
    {
        if (_gate.Close())
        {
            ReleasePass();
            _workspace.Dispose();
            _parameters.Dispose();
        }
    }

    /// <summary>Begins a call of something that works with the model's memory.</summary>
    /// <param name="call">What messages name it.</param>
    internal ModelGate.Visit Enter(string call) => _gate.Enter(call);

    /// <summary>
    /// The configuration itself if it names buckets or needs none at this length, else one with the buckets of its
    /// rule.
    /// </summary>
    internal static ReformerConfig WithBuckets(ReformerConfig config, int length)
    {
        long padded = ModelPass.PaddedLength(config, length, fullAttention: false);
        if (config.NumBuckets is not null || padded <= config.LshAttnChunkLength
            || !config.AttnLayers.Any(kind => AttentionCost.Resolve(config, kind, length) == AttentionKind.Lsh))
        {
            return config;
        }

        BucketFactors factors = BucketFactors.Automatic(
            config.Lsh.Buckets, padded, config.LshAttnChunkLength, config.MaxPositionEmbeddings);
        return config with { NumBuckets = factors.ToArray() };
    }

    /// <summary><see cref="ResolveBuckets"/> within a call.</summary>
    /// <param name="length">T, tokens of a sequence.</param>
    internal void ChooseBuckets(int length)
    {
        ReformerConfig before = Config;
        Config = WithBuckets(before, length);
        if (!ReferenceEquals(before, Config))
        {
            ModelLog.BucketsChosen(_logger, string.Join(" x ", Config.NumBuckets!), Config.Lsh.Buckets, length);
        }
    }

    /// <summary>Outputs of the head after the last tokens, [B, V], valid until the next pass.</summary>
    /// <param name="batch">Ids.</param>
    /// <param name="options">Seed, rounds.</param>
    /// <param name="run">Runs a block in another way than by its forward pass alone; null for that.</param>
    internal TensorView NextTokenLogits(
        TokenBatch batch, in RunOptions options, Action<ModelPass, int, ReversibleBlock>? run = null)
    {
        if (Config.Task == ReformerTask.SequenceClassification)
        {
            throw new NotSupportedException("expected a language model, found a sequence classifier");
        }

        ModelPass pass = Prepare(batch, options, backward: false, inspect: false);
        RunForward(pass, batch, options, keep: false, null, run);
        for (int b = 0; b < batch.BatchSize; b++)
        {
            pass.FinalNorm(((long)(b + 1) * batch.Length) - 1, 1, 0, options).Forward(_workspace);
            (pass.Project(1) with { Y = pass.Logits.Rows(b, 1) }).Forward(_workspace);
        }

        return pass.Logits;
    }

    /// <summary>Throws if a pass reported a value out of the exact range.</summary>
    /// <param name="report">The report.</param>
    /// <param name="first">Position of the first token of the pass.</param>
    /// <param name="length">Tokens of each example in the pass.</param>
    internal void CheckRange(TensorView report, long first, long length)
    {
        if (Config.Residual != ResidualMode.Exact)
        {
            return;
        }

        report.CopyTo<long>(_rangeReport);
        if (_rangeReport[0] > 0)
        {
            (long row, long channel) = Math.DivRem(_rangeReport[3], Config.HiddenSize);
            throw new ResidualRangeException(
                (int)_rangeReport[1] - 1, (int)_rangeReport[2], row / length, first + (row % length), channel,
                _rangeReport[0], Config.ResidualGridExponent);
        }
    }

    private static ReformerModel Make(
        ReformerConfig config, ReformerContext context, ILogger? logger, Action<ModelParameters> fill)
    {
        var model = new ReformerModel(config, context, logger);
        try
        {
            fill(model._parameters);
            return model;
        }
        catch
        {
            model.Dispose();
            throw;
        }
    }

    private static void RequireLabels(long count)
    {
        if (count == 0)
        {
            throw new ArgumentException(
                $"labels: expected at least one that takes part in the loss, found only {TokenBatch.IgnoredLabel}");
        }
    }

    private Reconstruction Reconstruct()
    {
        if (!_recovered || _pass is not { } pass)
        {
            throw new InvalidOperationException(
                "expected a pass with gradients before this call, found another or none");
        }

        // The gradients of the streams have been used up: their memory takes the embeddings.
        _recovered = false;
        (pass.Embedding(_lastBackward) with { Stream1 = pass.GradStream1, Stream2 = default }).Forward(_workspace);
        return Compare(pass.GradStream1, pass.Stream1).And(Compare(pass.GradStream1, pass.Stream2));
    }

    private ModelPass Prepare(TokenBatch batch, in RunOptions options, bool backward, bool inspect)
    {
        ArgumentNullException.ThrowIfNull(batch);
        _recovered = false;
        if (Config.PositionLimit is long limit && batch.Length > limit)
        {
            throw new ArgumentException(
                $"length: expected at most the {limit} positions of the model, found {batch.Length}", nameof(batch));
        }

        int rounds = options.Rounds ?? Config.NumHashes;
        if (rounds < 1)
        {
            throw new ArgumentException($"rounds: expected an integer from 1 up, found {rounds}", nameof(options));
        }

        if (backward)
        {
            _parameters.EnsureGradients();
        }

        IReadOnlyList<KeepActivations>? keep = backward ? options.Keep : null;
        if (keep is not null && keep.Count != Config.AttnLayers.Count)
        {
            throw new ArgumentException(
                $"keep: expected one for each of {Config.AttnLayers.Count} layers, found {keep.Count}",
                nameof(options));
        }

        // Buffers with room for gradients serve evaluation too.
        var shape = new PassShape(batch.BatchSize, batch.Length, rounds, options.FullAttention, backward, inspect);
        if (_pass is null
            || !(_pass.Shape == shape ? _pass.Keeps(keep) : !backward && _pass.Shape == shape with { Backward = true }))
        {
            ReleasePass();
            if (!options.FullAttention)
            {
                ChooseBuckets(batch.Length);
                ReportAutoForm(batch.Length);
            }

            _pass = new ModelPass(Config, _parameters, shape, keep, Allocate);
            _workspace.Reserve(_pass.WorkspaceBytes(Context));
        }

        CheckIds(batch);
        _pass.Ids.CopyFrom<int>(batch.Ids);
        _masked = batch.HasMask && batch.Mask.Contains((byte)0);
        if (_masked)
        {
            _pass.Mask.CopyFrom<byte>(batch.Mask);
        }

        return _pass;
    }

    /// <summary>Says what auto layers are, whenever it is something else than in the pass before.</summary>
    private void ReportAutoForm(int length)
    {
        AttentionKind form = AttentionCost.Resolve(Config, AttentionKind.Auto, length);
        if (Config.AttnLayers.Contains(AttentionKind.Auto) && form != _autoForm)
        {
            _autoForm = form;
            ModelLog.AutoResolved(_logger, form, length, AttentionCost.Crossover(Config));
        }
    }

    private TensorView Allocate(string name, TensorShape shape, DType type)
    {
        var tensor = new Tensor(Context, shape, type);
        _buffers.Add(tensor);
        return tensor.View;
    }

    private void ReleasePass()
    {
        _pass = null;
        foreach (Tensor buffer in _buffers)
        {
            buffer.Dispose();
        }

        _buffers.Clear();
    }

    private void CheckIds(TokenBatch batch)
    {
        int place = batch.Ids.IndexOfAnyExceptInRange(0, Config.VocabSize - 1);
        if (place >= 0)
        {
            throw new ArgumentException(
                $"ids: expected 0 .. {Config.VocabSize - 1}, found {batch.Ids[place]} "
                + $"in example {place / batch.Length}, token {place % batch.Length}",
                nameof(batch));
        }
    }

    /// <summary>Copies the labels, moved by one for a causal model, and counts those that take part.</summary>
    private long CopyLabels(ModelPass pass, TokenBatch batch)
    {
        int rows = batch.TokenCount;
        if (_labels.Length < rows)
        {
            _labels = new int[rows];
        }

        Span<int> labels = _labels.AsSpan(0, rows);
        int outputs = Config.Task == ReformerTask.SequenceClassification ? Config.NumLabels : Config.VocabSize;
        labels.Fill(TokenBatch.IgnoredLabel);
        for (int b = 0; b < batch.BatchSize; b++)
        {
            Span<int> given = batch.Labels.Slice(b * batch.Length, batch.Length);
            switch (Config.Task)
            {
                case ReformerTask.CausalLanguageModel:
                    given[1..].CopyTo(labels[(b * batch.Length)..]);
                    break;

                case ReformerTask.SequenceClassification:
                    labels[b] = given[0];
                    break;

                default:
                    given.CopyTo(labels[(b * batch.Length)..]);
                    break;
            }
        }

        long count = 0;
        foreach (int label in labels)
        {
            if (label != TokenBatch.IgnoredLabel && (uint)label >= (uint)outputs)
            {
                throw new ArgumentException(
                    $"labels: expected 0 .. {outputs - 1} or {TokenBatch.IgnoredLabel}, found {label}", nameof(batch));
            }

            count += label == TokenBatch.IgnoredLabel ? 0 : 1;
        }

        pass.Labels.CopyFrom<int>(labels);
        return count;
    }

    private void RunForward(
        ModelPass pass, TokenBatch batch, in RunOptions options, bool keep, ModelTrace? trace,
        Action<ModelPass, int, ReversibleBlock>? run = null)
    {
        pass.RangeReport.Zero();
        pass.Embedding(options).Forward(_workspace);
        if (trace is not null)
        {
            trace.Embeddings = pass.Stream1.ToArray<float>();
        }

        for (int layer = 0; layer < Config.AttnLayers.Count; layer++)
        {
            DrawRotations(pass, layer, options);
            ReversibleBlock block = pass.Block(layer, options, _masked, keep);
            if (run is null)
            {
                block.Forward(_workspace);
            }
            else
            {
                run(pass, layer, block);
            }

            trace?.SetLayer(layer, new LayerTrace(
                block.AttentionResult.ToArray<float>(),
                pass.Stream1.ToArray<float>(),
                pass.Stream2.ToArray<float>(),
                pass.IsHashed(layer) ? block.Buckets.ToArray<int>() : null,
                pass.IsHashed(layer) ? pass.Rotations.ToArray<float>() : null));
        }

        CheckRange(pass.RangeReport, 0, batch.Length);
    }

    /// <summary>Rotations are a function of seed, step and layer, so the backward pass draws the same again.</summary>
    private void DrawRotations(ModelPass pass, int layer, in RunOptions options)
    {
        if (!pass.IsHashed(layer))
        {
            return;
        }

        if (options.Rotations is { } given)
        {
            float[] rotations =
                given[layer]
                ?? throw new ArgumentException(
                    $"rotations: expected some for layer {layer}, which hashes, found none", nameof(options));
            pass.Rotations.CopyFrom<float>(rotations);
            return;
        }

        new RandomNormal
        {
            Seed = Config.HashSeed is int seed ? (ulong)seed : options.Seed,
            Step = Config.HashSeed is null ? options.Step : 0,
            Layer = layer,
            Site = RandomSite.Rotations,
            StandardDeviation = 1,
            Destination = pass.Rotations,
        }.Run(Context);
    }

    /// <summary>
    /// Final norm and loss, a stretch of rows at a time; with a scale, the gradients of the streams too.
    /// </summary>
    private void RunHead(ModelPass pass, in RunOptions options, long count, float? lossScale = null)
    {
        if (Config.Task == ReformerTask.SequenceClassification)
        {
            RunClassifier(pass, options, count, lossScale);
            return;
        }

        for (int chunk = 0; chunk < pass.HeadChunks; chunk++)
        {
            long first = (long)chunk * ModelPass.HeadRows;
            long rows = Math.Min(ModelPass.HeadRows, pass.RowCount - first);
            FinalNorm norm = pass.FinalNorm(first, rows, 0, options);
            HeadLoss loss = pass.HeadLoss(first, rows, chunk, count, lossScale);
            norm.Forward(_workspace);
            if (lossScale is not null)
            {
                loss.Backward(_workspace);
                norm.Backward(_workspace);
            }
            else
            {
                loss.Forward(_workspace);
            }
        }
    }

    private void RunClassifier(ModelPass pass, in RunOptions options, long count, float? lossScale)
    {
        int examples = pass.Shape.Batch;
        int length = pass.Shape.Length;
        for (int b = 0; b < examples; b++)
        {
            pass.FinalNorm((long)b * length, 1, b, options).Forward(_workspace);
        }

        pass.Pool().Forward(_workspace);
        HeadLoss loss = pass.HeadLoss(0, examples, 0, count, lossScale);
        if (lossScale is null)
        {
            loss.Forward(_workspace);
            return;
        }

        loss.Backward(_workspace);
        pass.Pool().Backward(_workspace);
        pass.GradStream1.Zero();
        pass.GradStream2.Zero();
        for (int b = 0; b < examples; b++)
        {
            pass.FinalNorm((long)b * length, 1, b, options).Backward(_workspace);
        }
    }

    /// <summary>The loss of the last head that ran: waits for it and sums the statistics of its stretches.</summary>
    private LossResult ReadLoss(ModelPass pass)
    {
        int values = pass.HeadChunks * 3;
        if (_statistics.Length != values)
        {
            _statistics = new double[values];
        }

        pass.Statistics.CopyTo<double>(_statistics);
        double sum = 0;
        double rows = 0;
        double correct = 0;
        for (int i = 0; i < values; i += 3)
        {
            sum += _statistics[i];
            rows += _statistics[i + 1];
            correct += _statistics[i + 2];
        }

        return new LossResult(sum, (long)rows, (long)correct);
    }

    private void TraceHead(ModelPass pass, in RunOptions options, ModelTrace trace)
    {
        bool classifier = Config.Task == ReformerTask.SequenceClassification;
        long width = Config.FinalWidth;
        long outputs = pass.HeadOutputs;
        long room = pass.Hidden.Shape[0];
        trace.LastHiddenState = new float[pass.RowCount * width];
        trace.Logits = new float[(classifier ? pass.Shape.Batch : pass.RowCount) * outputs];
        for (long first = 0; first < pass.RowCount; first += room)
        {
            long rows = Math.Min(room, pass.RowCount - first);
            pass.FinalNorm(first, rows, 0, options).Forward(_workspace);
            pass.Hidden.Rows(0, rows).CopyTo(trace.LastHiddenState.AsSpan((int)(first * width), (int)(rows * width)));
            if (!classifier)
            {
                pass.Project(rows).Forward(_workspace);
                pass.Logits.Rows(0, rows).CopyTo(trace.Logits.AsSpan((int)(first * outputs), (int)(rows * outputs)));
            }
        }

        if (classifier)
        {
            for (int b = 0; b < pass.Shape.Batch; b++)
            {
                pass.FinalNorm((long)b * pass.Shape.Length, 1, b, options).Forward(_workspace);
            }

            pass.Pool().Forward(_workspace);
            pass.Project(pass.Shape.Batch).Forward(_workspace);
            pass.Logits.CopyTo<float>(trace.Logits);
        }
    }

    private void RunBackward(ModelPass pass, in RunOptions options)
    {
        for (int layer = Config.AttnLayers.Count - 1; layer >= 0; layer--)
        {
            ReversibleBlock block = pass.Block(layer, options, _masked, keep: true);
            if (block.KeptHidden.IsAbsent)
            {
                DrawRotations(pass, layer, options); // else nothing is hashed again
            }

            block.Backward(_workspace);
        }

        pass.Embedding(options).Backward(_workspace);
        _lastBackward = options;
        _recovered = true;
    }

    private static Reconstruction Compare(TensorView expected, TensorView found)
    {
        var a = new float[HostChunk];
        var b = new float[HostChunk];
        bool identical = true;
        double largest = 0;
        for (long start = 0; start < expected.ElementCount; start += HostChunk)
        {
            int count = (int)Math.Min(HostChunk, expected.ElementCount - start);
            expected.Part(start, new TensorShape(count)).CopyTo(a.AsSpan(0, count));
            found.Part(start, new TensorShape(count)).CopyTo(b.AsSpan(0, count));
            identical &= MemoryMarshal
                .AsBytes(a.AsSpan(0, count))
                .SequenceEqual(MemoryMarshal.AsBytes(b.AsSpan(0, count)));
            for (int i = 0; i < count; i++)
            {
                double difference = Math.Abs((double)a[i] - b[i]);
                largest = difference > largest || double.IsNaN(difference) ? difference : largest;
            }
        }

        return new Reconstruction(identical, largest);
    }
}
