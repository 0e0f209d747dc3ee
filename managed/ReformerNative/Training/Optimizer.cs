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
    private readonly List<Slot> _slots;
    private readonly TensorView[][] _lists; // of the rule
    private readonly float[] _weightDecays;
    private readonly Tensor _state;
    private readonly Tensor _clip;
    private readonly float[] _clipValues = new float[2];

    public Optimizer(ReformerModel model, TrainingOptions options)
    {
        _model = model;
        _options = options;
        _rule = UpdateRule.Of(options);
        IReadOnlyList<ParameterSpec> specs = new ParameterLayout(model.Config).Specs;
        _slots = SlotsOf(_rule, specs);
        _state = model.Context.Zeros(new TensorShape(_slots.Sum(slot => slot.Shape.ElementCount)));
        long start = 0;
        _lists = Lists(_rule, specs, _slots, shape =>
        {
            TensorView view = _state.View.Part(start, shape);
            start += shape.ElementCount;
            return view;
        });
        _weightDecays = [.. specs.Select(spec => _rule.DecayOf(spec.Shape))];
        _clip = model.Context.Zeros(new TensorShape(2));
    }

    /// <summary>Bytes that an optimizer keeps for a model.</summary>
    public static long StateBytes(ReformerConfig config, TrainingOptions options) =>
        SlotsOf(UpdateRule.Of(options), new ParameterLayout(config).Specs).Sum(slot => slot.Shape.ElementCount)
            * sizeof(float);

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
        TensorView[][] lists = Lists(rule, specs, SlotsOf(rule, specs), shape => TensorView.Meta(shape));
        return Math.Max(norm, rule.WorkspaceBytes(context, new UpdateTensors(shapes, shapes, lists, [])));
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
        var tensors = new UpdateTensors(_model.Values, _model.Gradients, _lists, _weightDecays);
        _rule.Update(_model.Workspace, tensors, _clip, learningRate, step);
    }

    public void Save(string path) =>
        SafetensorsWriter.Write(
            path, [.. _slots.Select(slot => TensorFile.Item(slot.Name, Sizes(slot.Shape), View(slot)))]);

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

            TensorFile.Read(file, entry, View(_slots[i]));
        }
    }

    public void Dispose()
    {
        _state.Dispose();
        _clip.Dispose();
    }

    // In the order of the file.
    private static List<Slot> SlotsOf(UpdateRule rule, IReadOnlyList<ParameterSpec> specs)
    {
        var slots = new List<Slot>();
        for (int i = 0; i < specs.Count; i++)
        {
            for (int list = 0; list < rule.Lists.Count; list++)
            {
                if (rule.ShapeOf(list, specs[i].Shape) is { } shape)
                {
                    slots.Add(new Slot($"{rule.Lists[list]}.{specs[i].Name}", shape, list, i));
                }
            }
        }

        return slots;
    }

    private static TensorView[][] Lists(
        UpdateRule rule, IReadOnlyList<ParameterSpec> specs, List<Slot> slots, Func<TensorShape, TensorView> allocate)
    {
        TensorView[][] lists = [.. rule.Lists.Select(_ => new TensorView[specs.Count])];
        foreach (Slot slot in slots)
        {
            lists[slot.List][slot.Parameter] = allocate(slot.Shape);
        }

        return lists;
    }

    private TensorView View(Slot slot) => _lists[slot.List][slot.Parameter];

    private static long[] Sizes(TensorShape shape)
    {
        var sizes = new long[shape.Rank];
        shape.CopyTo(sizes);
        return sizes;
    }

    /// <summary>A tensor that the rule keeps for a parameter.</summary>
    /// <param name="Name">Its name in a file.</param>
    /// <param name="Shape">Its shape.</param>
    /// <param name="List">Its list of the rule.</param>
    /// <param name="Parameter">Index of the parameter.</param>
    private readonly record struct Slot(string Name, TensorShape Shape, int List, int Parameter);
}
