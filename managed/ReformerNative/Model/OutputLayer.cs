using ReformerNative.Data;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>
/// The last map of a head and the cross entropy of its outputs: x weight^T + bias, a row for each label. Rows go
/// through it a stretch at a time, so that nothing of size [rows, outputs] exists.
/// </summary>
internal sealed class OutputLayer
{
    private readonly ReformerConfig _config;
    private readonly PassShape _shape;
    private readonly TensorView _weight;
    private readonly TensorView _bias;
    private readonly TensorView _gradWeight;
    private readonly TensorView _gradBias;
    private readonly TensorView _labels;
    private readonly TensorView _statistics;
    private readonly long _stretchRows;
    private int[] _hostLabels = [];
    private double[] _hostStatistics = [];

    /// <summary>Allocates.</summary>
    /// <param name="parts">The head's.</param>
    /// <param name="weight">Index of the weight among the head's parameters.</param>
    /// <param name="bias">Index of the bias.</param>
    /// <param name="rows">Rows with a label.</param>
    /// <param name="stretchRows">Rows of a stretch.</param>
    public OutputLayer(HeadParts parts, int weight, int bias, long rows, long stretchRows)
    {
        _config = parts.Config;
        _shape = parts.Shape;
        _weight = parts.Values[weight];
        _bias = parts.Values[bias];
        _gradWeight = parts.Gradients[weight];
        _gradBias = parts.Gradients[bias];
        _stretchRows = stretchRows;
        Stretches = (int)((rows + stretchRows - 1) / stretchRows);
        _labels = parts.Allocate("tokens", new TensorShape(rows), DType.Int32);
        _statistics = parts.Allocate("reports", new TensorShape(Stretches, 3), DType.Float64);
        Logits = parts.Allocate(
            "head", new TensorShape(_shape.Inspect ? stretchRows : _shape.Batch, Outputs), DType.Float32);
    }

    /// <summary>Stretches that the rows make.</summary>
    public int Stretches { get; }

    /// <summary>Outputs of a row; labels are below.</summary>
    public long Outputs => _weight.Shape[0];

    /// <summary>Labels that take part in the loss.</summary>
    public long LabelCount { get; private set; }

    /// <summary>Room for outputs of single rows; of a stretch when they are inspected.</summary>
    public TensorView Logits { get; }

    /// <summary>Labels of all rows, for the head to fill in; none takes part yet.</summary>
    public Span<int> ClearLabels()
    {
        if (_hostLabels.Length == 0)
        {
            _hostLabels = new int[_labels.ElementCount];
        }

        _hostLabels.AsSpan().Fill(TokenBatch.IgnoredLabel);
        return _hostLabels;
    }

    /// <summary>Checks and takes what was filled in.</summary>
    /// <exception cref="ArgumentException">A label is no output.</exception>
    public void TakeLabels()
    {
        LabelCount = 0;
        long count = 0;
        foreach (int label in _hostLabels)
        {
            if (label != TokenBatch.IgnoredLabel && (uint)label >= (uint)Outputs)
            {
                throw new ArgumentException(
                    $"labels: expected 0 .. {Outputs - 1} or {TokenBatch.IgnoredLabel}, found {label}", "batch");
            }

            count += label == TokenBatch.IgnoredLabel ? 0 : 1;
        }

        _labels.CopyFrom<int>(_hostLabels);
        LabelCount = count;
    }

    /// <summary>
    /// Loss of a stretch; the gradient of x takes the place of x. Without a scale there are no gradients, and the
    /// target is not smoothed.
    /// </summary>
    /// <param name="stretch">Its index.</param>
    /// <param name="x">Its rows.</param>
    /// <param name="lossScale">Factor of the gradients.</param>
    public HeadLoss Loss(int stretch, TensorView x, float? lossScale) => new()
    {
        IgnoreIndex = TokenBatch.IgnoredLabel,
        LabelSmoothing = lossScale is not null ? (float)_config.LabelSmoothing : 0,
        LossScale = lossScale ?? 1,
        Normalizer = LabelCount,
        Chunk = _config.ChunkSizeLmHead,
        X = x,
        Weight = _weight,
        Bias = _bias,
        Labels = _labels.Rows(stretch * _stretchRows, x.Shape[0]),
        Statistics = _statistics.Rows(stretch, 1).Reshape(new TensorShape(3)),
        GradX = _shape.Backward ? x : default,
        GradWeight = _gradWeight,
        GradBias = _gradBias,
    };

    /// <summary>Outputs of some rows.</summary>
    public Linear Project(TensorView x, TensorView logits) => new()
    {
        X = x,
        Weight = _weight,
        Bias = _bias,
        Y = logits,
    };

    /// <summary>The loss of all stretches; waits for it.</summary>
    public LossResult ReadLoss()
    {
        if (_hostStatistics.Length == 0)
        {
            _hostStatistics = new double[_statistics.ElementCount];
        }

        _statistics.CopyTo<double>(_hostStatistics);
        double sum = 0;
        double rows = 0;
        double correct = 0;
        for (int i = 0; i < _hostStatistics.Length; i += 3)
        {
            sum += _hostStatistics[i];
            rows += _hostStatistics[i + 1];
            correct += _hostStatistics[i + 2];
        }

        return new LossResult(sum, (long)rows, (long)correct);
    }

    /// <summary>The largest scratch that its ops need for so many rows, in bytes.</summary>
    public long WorkspaceBytes(ReformerContext context, TensorView x)
    {
        HeadLoss loss = Loss(0, x, _shape.Backward ? 1 : null);
        long bytes = Math.Max(
            loss.WorkspaceBytes(context, Pass.Forward),
            Project(x.Rows(0, 1), Logits.Rows(0, 1)).WorkspaceBytes(context, Pass.Forward));
        return _shape.Backward ? Math.Max(bytes, loss.WorkspaceBytes(context, Pass.Backward)) : bytes;
    }
}
