using ReformerNative.Data;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>
/// The end of a pass: what is computed from the last hidden states, what the labels of a batch mean, and the loss. It
/// has the buffers for it.
/// </summary>
/// <param name="parts">What it is made of.</param>
internal abstract class Head(HeadParts parts)
{
    /// <summary>Labels of the batch that take part in the loss.</summary>
    public abstract long LabelCount { get; }

    protected HeadParts Parts => parts;

    /// <summary>Where the final norm goes, [rows, W], as many rows at a time.</summary>
    protected abstract TensorView Hidden { get; }

    /// <summary>Takes the labels of a batch.</summary>
    /// <exception cref="ArgumentException">A label is impossible for this head.</exception>
    public abstract void LoadLabels(TokenBatch batch);

    /// <summary>Final norm and loss of the streams.</summary>
    /// <param name="workspace">Scratch memory.</param>
    /// <param name="options">Those of the pass.</param>
    /// <param name="lossScale">
    /// With a scale: the gradients of the mean loss times it, in the gradients of the streams (which they replace) and
    /// of the parameters (to which they are added).
    /// </param>
    public abstract void Loss(Workspace workspace, in RunOptions options, float? lossScale);

    /// <summary>The loss that was computed last; waits for it.</summary>
    public abstract LossResult ReadLoss();

    /// <summary>Outputs for what follows the last token of each example: [B, V], valid until the next pass.</summary>
    /// <exception cref="NotSupportedException">The head has none.</exception>
    public virtual TensorView NextTokenLogits(Workspace workspace, in RunOptions options) =>
        throw new NotSupportedException($"expected a language model, found a {HeadKind.Of(parts.Config.Task).Name}");

    /// <summary>Writes the last hidden states and the outputs of the head to a trace.</summary>
    public void Trace(Workspace workspace, in RunOptions options, ModelTrace trace)
    {
        TensorView hidden = Hidden;
        long width = parts.Config.FinalWidth;
        trace.LastHiddenState = new float[parts.Shape.Rows * width];
        for (long first = 0; first < parts.Shape.Rows; first += hidden.Shape[0])
        {
            long rows = Math.Min(hidden.Shape[0], parts.Shape.Rows - first);
            TensorView some = hidden.Rows(0, rows);
            parts.Hidden.Rows(first, some, default, options).Forward(workspace);
            some.CopyTo(trace.LastHiddenState.AsSpan((int)(first * width), (int)(rows * width)));
        }

        TraceLogits(workspace, options, trace);
    }

    /// <summary>The largest scratch that an op of the head needs, in bytes.</summary>
    public abstract long WorkspaceBytes(ReformerContext context);

    /// <summary>Writes all outputs of the head to a trace.</summary>
    protected abstract void TraceLogits(Workspace workspace, in RunOptions options, ModelTrace trace);
}
