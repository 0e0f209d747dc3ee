using ReformerNative.Checkpoints;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Training;

/// <summary>The tensors that an update rule keeps for a model, in one allocation, and the update of all
/// parameters.</summary>
internal sealed class Optimizer : IDisposable
{
    private readonly ReformerModel _model;
    private readonly TrainingOptions _options;
    private readonly UpdateRule _rule;
    private readonly List<OptimizerSlot> _slots = [];
    private readonly int[] _firstSlots; // of each parameter, and the end
    private readonly TensorView[] _views; // of each slot
    private readonly Tensor _state;
    private readonly Tensor _clip;
    private readonly float[] _clipValues = new float[2];

    public Optimizer(ReformerModel model, TrainingOptions options)
    {
        _model = model;
        _options = options;
        _rule = UpdateRule.Of(options);
        IReadOnlyList<ParameterSpec> specs = new ParameterLayout(model.Config).Specs;
        _firstSlots = new int[specs.Count + 1];
        for (int i = 0; i < specs.Count; i++)
        {
            _slots.AddRange(_rule.SlotsOf(specs[i]));
            _firstSlots[i + 1] = _slots.Count;
        }

        _state = model.Context.Zeros(new TensorShape(_slots.Sum(slot => slot.Shape.ElementCount)));
        _views = new TensorView[_slots.Count];
        long start = 0;
        for (int i = 0; i < _views.Length; i++)
        {
            _views[i] = _state.View.Part(start, _slots[i].Shape);
            start += _slots[i].Shape.ElementCount;
        }

        _clip = model.Context.Zeros(new TensorShape(2));
    }

    /// <summary>Bytes that an optimizer keeps for a model.</summary>
    public static long StateBytes(ReformerConfig config, TrainingOptions options)
    {
        UpdateRule rule = UpdateRule.Of(options);
        return new ParameterLayout(config).Specs.SelectMany(rule.SlotsOf).Sum(slot => slot.Shape.ElementCount)
            * sizeof(float);
    }

    /// <summary>Scratch that an update needs, in bytes.</summary>
    public static long WorkspaceBytes(ReformerConfig config, ReformerContext context, TrainingOptions options)
    {
        UpdateRule rule = UpdateRule.Of(options);
        IReadOnlyList<ParameterSpec> specs = new ParameterLayout(config).Specs;
        TensorView[] shapes = [.. specs.Select(spec => TensorView.Meta(spec.Shape))];
        long norm = new GlobalNorm
        {
            Gradients = shapes,
            Result = TensorView.Meta(new TensorShape(2)),
        }.WorkspaceBytes(context);
        long update = specs.Zip(shapes, (spec, shape) => rule.WorkspaceBytes(
            context, shape, [.. rule.SlotsOf(spec).Select(slot => TensorView.Meta(slot.Shape))])).Max();
        return Math.Max(norm, update);
    }

    /// <summary>Global norm of the model's gradients; the update scales them by the limit it is given here.</summary>
    public double MeasureNorm()
    {
        using ModelGate.Visit visit = _model.Enter(nameof(Trainer.RunStep));
        new GlobalNorm
        {
            MaxNorm = (float)_options.MaxGradientNorm,
            Gradients = _model.Gradients,
            Result = _clip,
        }.Run(_model.Workspace);
        _clip.CopyTo<float>(_clipValues);
        return _clipValues[0];
    }

    /// <summary>Updates all parameters.</summary>
    /// <param name="learningRate">The rate of this step.</param>
    /// <param name="step">1 for the first.</param>
    public void Update(double learningRate, long step)
    {
        using ModelGate.Visit visit = _model.Enter(nameof(Trainer.RunStep));
        for (int i = 0; i < _firstSlots.Length - 1; i++)
        {
            Parameter parameter = _model.Parameters[i];
            ReadOnlySpan<TensorView> slots = _views.AsSpan(_firstSlots[i].._firstSlots[i + 1]);
            _rule.Update(
                _model.Workspace, parameter.Value, parameter.Gradient, slots, _clip, learningRate, step);
        }
    }

    public void Save(string path) =>
        SafetensorsWriter.Write(
            path, [.. _slots.Select((slot, i) => TensorFile.Item(slot.Name, Sizes(slot.Shape), _views[i]))]);

    /// <exception cref="ReformerFormatException">The file does not fit the model and the optimizer, or holds values
    /// that are not finite.</exception>
    public void Load(string path)
    {
        using SafetensorsReader file = SafetensorsReader.Open(path);
        if (file.Entries.Count != _slots.Count)
        {
            throw new ReformerFormatException(
                path, $"expected {_slots.Count} tensors of {_options.Optimizer}, found {file.Entries.Count}");
        }

        for (int i = 0; i < _slots.Count; i++)
        {
            SafetensorsEntry entry = file.Get(_slots[i].Name);
            if (!entry.Shape.SequenceEqual(Sizes(_slots[i].Shape)))
            {
                throw new ReformerFormatException(
                    path,
                    $"'{entry.Name}': expected the shape {_slots[i].Shape}, found "
                        + SafetensorsFormat.Describe(entry.Shape));
            }

            TensorFile.Read(file, entry, _views[i]);
        }
    }

    public void Dispose()
    {
        _state.Dispose();
        _clip.Dispose();
    }

    private static long[] Sizes(TensorShape shape)
    {
        var sizes = new long[shape.Rank];
        shape.CopyTo(sizes);
        return sizes;
    }
}
