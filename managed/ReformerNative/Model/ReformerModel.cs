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
    private readonly ModelGate _gate = new();
    private readonly ILogger _logger;
    private readonly ModelParameters _parameters;
    private readonly PassMemory _memory;
    private ModelPass? _pass;
    private AttentionKind _autoForm = AttentionKind.Auto; // that auto layers had last

    private ReformerModel(ReformerConfig config, ReformerContext context, ILogger? logger)
    {
        Config = config;
        Context = context;
        _logger = logger ?? NullLogger.Instance;
        _parameters = new ModelParameters(config, context);
        Workspace = new Workspace(context);
        _memory = new PassMemory(context);
    }

    /// <summary>The configuration. Once buckets have been chosen automatically it names them.</summary>
    public ReformerConfig Config { get; private set; }

    /// <summary>The context that the model works in.</summary>
    public ReformerContext Context { get; }

    /// <summary>All parameters in the order of a Hugging Face state dictionary.</summary>
    public IReadOnlyList<Parameter> Parameters => _parameters.All;

    /// <summary>Number of trainable values.</summary>
    public long ParameterCount => _parameters.Layout.Count;

    internal Workspace Workspace { get; }

    internal TensorView[] Values => _parameters.Values;

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
    /// <exception cref="ReformerFormatException">A file is malformed, does not fit the configuration, or holds values
    /// that are not finite.</exception>
    public static ReformerModel Load(
        string directory, ReformerContext context, Func<ReformerConfig, ReformerConfig>? change = null,
        ILogger? logger = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(directory);
        ArgumentNullException.ThrowIfNull(context);
        ReformerConfig config = ReformerConfig.Load(Path.Combine(directory, CheckpointFiles.Config));
        if (change is not null)
        {
            config = change(config);
            config.Validate();
        }

        using SafetensorsReader file = SafetensorsReader.Open(Path.Combine(directory, CheckpointFiles.Weights));
        ModelFile.Check(file, config);
        return Make(config, context, logger, parameters => ModelFile.Read(file, config, parameters));
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
        ModelFile.Write(Path.Combine(directory, CheckpointFiles.Weights), Config, _parameters);
        Config.Save(Path.Combine(directory, CheckpointFiles.Config));
    }

    /// <summary>
    /// Chooses the number of hash buckets by the configured rule if the configuration leaves it open and sequences of
    /// this length are hashed. A pass does this by itself; the choice then stays with the model and is saved with it.
    /// </summary>
    /// <param name="length">T, tokens of a sequence.</param>
    public void ResolveBuckets(int length)
    {
        using ModelGate.Visit visit = _gate.Enter();
        Resolve(length);
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
        pass.LoadLabels(batch);
        pass.Forward(Workspace, options);
        pass.Head.Loss(Workspace, options, lossScale: null);
        return pass.Head.ReadLoss();
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
        pass.LoadLabels(batch);
        pass.Forward(Workspace, options, keep: true);
        pass.Backward(Workspace, options, lossScale);
        return pass.Head.ReadLoss(); // last, since it waits for the device
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
        return _pass is { } pass ? pass.MeasureReconstruction(Workspace) : throw ModelPass.NothingToReconstruct();
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
        return Prepare(batch, options, backward, inspect: true).Trace(Workspace, batch, options, backward);
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
            _memory.Dispose();
            Workspace.Dispose();
            _parameters.Dispose();
        }
    }

    /// <summary>Begins a call of something that works with the model's memory.</summary>
    /// <param name="call">What messages name it.</param>
    internal ModelGate.Visit Enter(string call) => _gate.Enter(call);

    /// <summary>Within a call: chooses buckets, and says what auto layers are at this length if that is new.</summary>
    internal void Resolve(int length)
    {
        ReformerConfig before = Config;
        Config = LayerForms.WithBuckets(before, length);
        if (!ReferenceEquals(before, Config))
        {
            ModelLog.BucketsChosen(_logger, string.Join(" x ", Config.NumBuckets!), Config.Lsh.Buckets, length);
        }

        if (Config.AttnLayers.Contains(AttentionKind.Auto)
            && AttentionCost.Resolve(Config, AttentionKind.Auto, length) is var form && form != _autoForm)
        {
            _autoForm = form;
            ModelLog.AutoResolved(_logger, form, length, AttentionCost.Crossover(Config));
        }
    }

    /// <summary>Within a call: outputs for what follows the last tokens, [B, V], valid until the next pass.</summary>
    internal TensorView NextTokenLogits(TokenBatch batch, in RunOptions options)
    {
        ModelPass pass = Prepare(batch, options, backward: false, inspect: false);
        pass.Forward(Workspace, options);
        return pass.Head.NextTokenLogits(Workspace, options);
    }

    /// <summary>Another pass through the model, without gradients.</summary>
    internal ModelPass MakePass(PassShape shape, PassMemory memory) =>
        new(Config, _parameters, shape, keep: null, memory.Allocate);

    /// <summary>The layers alone.</summary>
    internal LayerStack MakeStack(PassShape shape, PassMemory memory) =>
        new(Config, _parameters, shape, keep: null, memory.Allocate);

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

    private ModelPass Prepare(TokenBatch batch, in RunOptions options, bool backward, bool inspect)
    {
        ArgumentNullException.ThrowIfNull(batch);
        PassShape shape = PassShape.For(Config, batch, options, backward, inspect);
        IReadOnlyList<KeepActivations>? keep = backward ? options.Keep : null;
        if (backward)
        {
            _parameters.EnsureGradients();
        }

        if (_pass?.Serves(shape, keep) != true)
        {
            _pass = null;
            _memory.Dispose();
            if (!options.FullAttention)
            {
                Resolve(batch.Length);
            }

            _pass = new ModelPass(Config, _parameters, shape, keep, _memory.Allocate);
            Workspace.Reserve(_pass.WorkspaceBytes(Context));
        }

        _pass.Load(batch);
        return _pass;
    }
}
