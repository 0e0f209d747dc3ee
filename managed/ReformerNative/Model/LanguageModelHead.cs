using ReformerNative.Data;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>A language model: for each token a probability of each id.</summary>
internal abstract class LanguageModel : HeadKind
{
    private const string BiasName = "lm_head.bias";

    /// <inheritdoc/>
    public override IReadOnlyDictionary<string, string> SecondNames { get; } = new Dictionary<string, string>
    {
        [BiasName] = "lm_head.decoder.bias",
    };

    /// <summary>The outputs at a token are compared with the label so many tokens later.</summary>
    protected abstract int LabelOffset { get; }

    /// <inheritdoc/>
    public override IReadOnlyList<ParameterSpec> Parameters(ReformerConfig config) =>
    [
        ParameterSpec.Of(BiasName, [config.VocabSize], 0),
        ParameterSpec.Of("lm_head.decoder.weight", [config.VocabSize, config.FinalWidth], config.InitializerRange),
    ];

    /// <inheritdoc/>
    public override Head Create(HeadParts parts) => new LanguageModelHead(parts, LabelOffset);
}

/// <summary>The outputs at a token are for the next one.</summary>
internal sealed class CausalLanguageModel : LanguageModel
{
    /// <inheritdoc/>
    public override ReformerTask Task => ReformerTask.CausalLanguageModel;

    /// <inheritdoc/>
    public override string Name => "causal language model";

    /// <inheritdoc/>
    public override string Architecture => "ReformerModelWithLMHead";

    /// <inheritdoc/>
    public override bool? IsDecoder => true;

    /// <inheritdoc/>
    public override bool PredictsNextToken => true;

    /// <inheritdoc/>
    protected override int LabelOffset => 1;
}

/// <summary>The outputs at a token are for itself, which the input hides.</summary>
internal sealed class MaskedLanguageModel : LanguageModel
{
    /// <inheritdoc/>
    public override ReformerTask Task => ReformerTask.MaskedLanguageModel;

    /// <inheritdoc/>
    public override string Name => "masked language model";

    /// <inheritdoc/>
    public override string Architecture => "ReformerForMaskedLM";

    /// <inheritdoc/>
    public override bool? IsDecoder => false;

    /// <inheritdoc/>
    protected override int LabelOffset => 0;
}

/// <summary>
/// The head of a language model: final norm and cross entropy, a stretch of rows at a time, so that nothing of size
/// [B·T, W] or [B·T, V] exists.
/// </summary>
internal sealed class LanguageModelHead : Head
{
    /// <summary>Rows of a stretch.</summary>
    private const int StretchRows = 4096;

    private readonly OutputLayer _output;
    private readonly int _labelOffset;

    public LanguageModelHead(HeadParts parts, int labelOffset)
        : base(parts)
    {
        _labelOffset = labelOffset;
        long stretchRows = Math.Min(StretchRows, parts.Shape.Rows);
        Hidden = parts.Allocate("head", new TensorShape(stretchRows, parts.Config.FinalWidth), DType.Float32);
        _output = new OutputLayer(parts, weight: 1, bias: 0, parts.Shape.Rows, stretchRows);
    }

    /// <inheritdoc/>
    public override long LabelCount => _output.LabelCount;

    /// <inheritdoc/>
    protected override TensorView Hidden { get; }

    /// <inheritdoc/>
    public override void LoadLabels(TokenBatch batch)
    {
        Span<int> labels = _output.ClearLabels();
        for (int b = 0; b < batch.BatchSize; b++)
        {
            batch.Labels.Slice(b * batch.Length, batch.Length)[_labelOffset..].CopyTo(labels[(b * batch.Length)..]);
        }

        _output.TakeLabels();
    }

    /// <inheritdoc/>
    public override void Loss(Workspace workspace, in RunOptions options, float? lossScale)
    {
        for (int stretch = 0; stretch < _output.Stretches; stretch++)
        {
            long first = stretch * Hidden.Shape[0];
            TensorView hidden = Hidden.Rows(0, Math.Min(Hidden.Shape[0], Parts.Shape.Rows - first));
            FinalNorm norm = Parts.Hidden.Rows(first, hidden, gradient: hidden, options);
            HeadLoss loss = _output.Loss(stretch, hidden, lossScale);
            norm.Forward(workspace);
            if (lossScale is null)
            {
                loss.Forward(workspace);
            }
            else
            {
                loss.Backward(workspace);
                norm.Backward(workspace);
            }
        }
    }

    /// <inheritdoc/>
    public override LossResult ReadLoss() => _output.ReadLoss();

    /// <inheritdoc/>
    public override TensorView NextTokenLogits(Workspace workspace, in RunOptions options)
    {
        TensorView hidden = Hidden.Rows(0, 1);
        for (int b = 0; b < Parts.Shape.Batch; b++)
        {
            long last = ((b + 1L) * Parts.Shape.Length) - 1;
            Parts.Hidden.Rows(last, hidden, default, options).Forward(workspace);
            _output.Project(hidden, _output.Logits.Rows(b, 1)).Forward(workspace);
        }

        return _output.Logits;
    }

    /// <inheritdoc/>
    public override long WorkspaceBytes(ReformerContext context)
    {
        FinalNorm norm = Parts.Hidden.Rows(0, Hidden, Hidden, default);
        long bytes = Math.Max(
            _output.WorkspaceBytes(context, Hidden), norm.WorkspaceBytes(context, Pass.Forward));
        return Parts.Shape.Backward ? Math.Max(bytes, norm.WorkspaceBytes(context, Pass.Backward)) : bytes;
    }

    /// <inheritdoc/>
    protected override void TraceLogits(Workspace workspace, in RunOptions options, ModelTrace trace)
    {
        long outputs = _output.Outputs;
        trace.LogitsShape = [Parts.Shape.Batch, Parts.Shape.Length, outputs];
        trace.Logits = new float[Parts.Shape.Rows * outputs];
        for (long first = 0; first < Parts.Shape.Rows; first += Hidden.Shape[0])
        {
            long rows = Math.Min(Hidden.Shape[0], Parts.Shape.Rows - first);
            TensorView hidden = Hidden.Rows(0, rows);
            TensorView some = _output.Logits.Rows(0, rows);
            Parts.Hidden.Rows(first, hidden, default, options).Forward(workspace);
            _output.Project(hidden, some).Forward(workspace);
            some.CopyTo(trace.Logits.AsSpan((int)(first * outputs), (int)(rows * outputs)));
        }
    }
}
