using ReformerNative.Data;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>
/// A pass of one shape: the layers, the head and their buffers. A memory plan and a run make it by the same code; the
/// plan's buffers have shapes only. An encoder in front of the layers would be a second <see cref="LayerStack"/> here.
/// </summary>
internal sealed class ModelPass
{
    private readonly PassShape _shape;
    private RunOptions? _reversed; // of the backward pass that went last through the layers

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
        _shape = shape;
        Stack = new LayerStack(config, parameters, shape, keep, allocate);
        TensorView[] values = parameters.Values[parameters.Layout.Head];
        Head = HeadKind.Of(config.Task).Create(new HeadParts(
            config, shape, new FinalHidden(config, parameters, shape, Stack), values,
            shape.Backward ? parameters.Gradients[parameters.Layout.Head] : new TensorView[values.Length], allocate));
    }

    public LayerStack Stack { get; }

    public Head Head { get; }

    /// <summary>
    /// Whether it does what a pass of another shape would: one with room for gradients serves evaluation too.
    /// </summary>
    /// <param name="shape">What the other pass would be.</param>
    /// <param name="keep">What its layers would keep.</param>
    public bool Serves(PassShape shape, IReadOnlyList<KeepActivations>? keep) =>
        _shape == shape ? Stack.Kept.Are(keep) : !shape.Backward && _shape == shape with { Backward = true };

    /// <summary>Takes ids and mask of a batch.</summary>
    /// <exception cref="ArgumentException">An id is impossible.</exception>
    public void Load(TokenBatch batch)
    {
        _reversed = null;
        Stack.Load(batch.Ids, batch.HasMask ? batch.Mask : []);
    }

    /// <summary>Takes the labels of a batch.</summary>
    /// <param name="batch">The batch.</param>
    /// <param name="needed">Whether there must be one that takes part in the loss.</param>
    /// <exception cref="ArgumentException">A label is impossible, or a needed one is missing.</exception>
    public void LoadLabels(TokenBatch batch, bool needed = true)
    {
        Head.LoadLabels(batch);
        if (needed && Head.LabelCount == 0)
        {
            throw new ArgumentException(
                $"labels: expected at least one that takes part in the loss, found only {TokenBatch.IgnoredLabel}");
        }
    }

    /// <summary>Everything before the head.</summary>
    /// <param name="workspace">Scratch memory.</param>
    /// <param name="options">Seed, step, rotations.</param>
    /// <param name="keep">Whether a backward pass follows.</param>
    /// <exception cref="ResidualRangeException">A residual stream left its exact range.</exception>
    public void Forward(Workspace workspace, in RunOptions options, bool keep = false) =>
        Stack.Forward(workspace, options, keep, trace: null);

    /// <summary>The head's gradients and then those of everything before it.</summary>
    /// <param name="workspace">Scratch memory.</param>
    /// <param name="options">Those of the forward pass.</param>
    /// <param name="lossScale">Factor of the gradients.</param>
    public void Backward(Workspace workspace, in RunOptions options, float lossScale)
    {
        Head.Loss(workspace, options, lossScale);
        Stack.Backward(workspace, options);
        _reversed = options;
    }

    /// <summary>How well the last backward pass recovered the embeddings. It can be asked once.</summary>
    /// <exception cref="InvalidOperationException">The last pass had no backward part.</exception>
    public Reconstruction MeasureReconstruction(Workspace workspace)
    {
        RunOptions options = _reversed ?? throw NothingToReconstruct();
        _reversed = null;
        return Stack.MeasureReconstruction(workspace, options);
    }

    /// <summary>The whole pass, with everything it computes.</summary>
    /// <param name="workspace">Scratch memory.</param>
    /// <param name="batch">What was loaded; without any label that counts there is no loss.</param>
    /// <param name="options">Seed, step, rotations.</param>
    /// <param name="backward">Whether to compute gradients.</param>
    public ModelTrace Trace(Workspace workspace, TokenBatch batch, in RunOptions options, bool backward)
    {
        var trace = new ModelTrace(Stack.Forms.Count);
        LoadLabels(batch, needed: backward);
        Stack.Forward(workspace, options, backward, trace);
        Head.Trace(workspace, options, trace);
        if (backward)
        {
            Backward(workspace, options, lossScale: 1);
            trace.Reconstruction = MeasureReconstruction(workspace);
        }
        else if (Head.LabelCount > 0)
        {
            Head.Loss(workspace, options, lossScale: null);
        }

        trace.Loss = Head.LabelCount > 0 ? Head.ReadLoss() : null;
        return trace;
    }

    /// <summary>What a caller is told who asks too early.</summary>
    public static InvalidOperationException NothingToReconstruct() =>
        new("expected a pass with gradients before this call, found another or none");

    /// <summary>The largest scratch that an op of the pass needs, in bytes.</summary>
    public long WorkspaceBytes(ReformerContext context) =>
        Math.Max(Stack.WorkspaceBytes(context), Head.WorkspaceBytes(context));
}
