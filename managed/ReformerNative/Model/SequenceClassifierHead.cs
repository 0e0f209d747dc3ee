using ReformerNative.Data;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>A class for each sequence, from its first token through a hidden layer.</summary>
internal sealed class SequenceClassifier : HeadKind
{
    /// <inheritdoc/>
    public override ReformerTask Task => ReformerTask.SequenceClassification;

    /// <inheritdoc/>
    public override string Name => "sequence classifier";

    /// <inheritdoc/>
    public override string Architecture => "ReformerForSequenceClassification";

    /// <inheritdoc/>
    public override IReadOnlyList<ParameterSpec> Parameters(ReformerConfig config) =>
    [
        ParameterSpec.Of(
            "classifier.dense.weight", [config.HiddenSize, config.FinalWidth], config.InitializerRange),
        ParameterSpec.Of("classifier.dense.bias", [config.HiddenSize], 0),
        ParameterSpec.Of("classifier.out_proj.weight", [config.NumLabels, config.HiddenSize], config.InitializerRange),
        ParameterSpec.Of("classifier.out_proj.bias", [config.NumLabels], 0),
    ];

    /// <inheritdoc/>
    public override Head Create(HeadParts parts) => new SequenceClassifierHead(parts);
}

/// <summary>The head of a sequence classifier. The label of an example is the one of its first token.</summary>
internal sealed class SequenceClassifierHead : Head
{
    private readonly OutputLayer _output;
    private readonly TensorView _hiddenGradient;
    private readonly TensorView _pooled; // the hidden layer [B, E], then its gradient

    public SequenceClassifierHead(HeadParts parts)
        : base(parts)
    {
        long examples = parts.Shape.Batch;
        var hidden = new TensorShape(examples, parts.Config.FinalWidth);
        Hidden = parts.Allocate("head", hidden, DType.Float32);
        _hiddenGradient = parts.Shape.Backward ? parts.Allocate("head", hidden, DType.Float32) : default;
        _pooled = parts.Allocate("head", new TensorShape(examples, parts.Config.HiddenSize), DType.Float32);
        _output = new OutputLayer(parts, weight: 2, bias: 3, examples, stretchRows: examples);
    }

    /// <inheritdoc/>
    public override long LabelCount => _output.LabelCount;

    /// <inheritdoc/>
    protected override TensorView Hidden { get; }

    /// <inheritdoc/>
    public override void LoadLabels(TokenBatch batch)
    {
        Span<int> labels = _output.ClearLabels();
        for (int b = 0; b < labels.Length; b++)
        {
            labels[b] = batch.Labels[b * batch.Length];
        }

        _output.TakeLabels();
    }

    /// <inheritdoc/>
    public override void Loss(Workspace workspace, in RunOptions options, float? lossScale)
    {
        RunHiddenLayer(workspace, options);
        HeadLoss loss = _output.Loss(0, _pooled, lossScale);
        if (lossScale is null)
        {
            loss.Forward(workspace);
            return;
        }

        loss.Backward(workspace);
        HiddenLayer().Backward(workspace);
        Parts.Hidden.ZeroStreamGradients();
        for (int b = 0; b < Parts.Shape.Batch; b++)
        {
            FirstToken(b, options).Backward(workspace);
        }
    }

    /// <inheritdoc/>
    public override LossResult ReadLoss() => _output.ReadLoss();

    /// <inheritdoc/>
    public override long WorkspaceBytes(ReformerContext context)
    {
        FinalNorm norm = FirstToken(0, default);
        Linear layer = HiddenLayer();
        long bytes = Math.Max(_output.WorkspaceBytes(context, _pooled), norm.WorkspaceBytes(context, Pass.Forward));
        bytes = Math.Max(bytes, layer.WorkspaceBytes(context, Pass.Forward));
        return !Parts.Shape.Backward ? bytes : Math.Max(
            bytes,
            Math.Max(norm.WorkspaceBytes(context, Pass.Backward), layer.WorkspaceBytes(context, Pass.Backward)));
    }

    /// <inheritdoc/>
    protected override void TraceLogits(Workspace workspace, in RunOptions options, ModelTrace trace)
    {
        RunHiddenLayer(workspace, options);
        _output.Project(_pooled, _output.Logits).Forward(workspace);
        trace.LogitsShape = [Parts.Shape.Batch, _output.Outputs];
        trace.Logits = _output.Logits.ToArray<float>();
    }

    private void RunHiddenLayer(Workspace workspace, in RunOptions options)
    {
        for (int b = 0; b < Parts.Shape.Batch; b++)
        {
            FirstToken(b, options).Forward(workspace);
        }

        HiddenLayer().Forward(workspace);
    }

    /// <summary>The final norm of an example's first token.</summary>
    private FinalNorm FirstToken(int example, in RunOptions options) => Parts.Hidden.Rows(
        (long)example * Parts.Shape.Length, Hidden.Rows(example, 1),
        _hiddenGradient.IsAbsent ? default : _hiddenGradient.Rows(example, 1), options);

    private Linear HiddenLayer() => new()
    {
        Activation = Activation.Tanh,
        X = Hidden,
        Weight = Parts.Values[0],
        Bias = Parts.Values[1],
        Y = _pooled,
        GradY = _pooled,
        GradX = _hiddenGradient,
        GradWeight = Parts.Gradients[0],
        GradBias = Parts.Gradients[1],
    };
}
