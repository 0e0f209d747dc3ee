using ReformerNative.Checkpoints;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Training;

/// <summary>One tensor that an optimizer keeps for a parameter.</summary>
internal sealed record OptimizerSlot(string Name, int Parameter, TensorShape Shape);

/// <summary>An optimizer's tensors in one allocation, and the update.</summary>
internal sealed class Optimizer : IDisposable
{
    private const string Moment1 = "moment1.";
    private const string Moment2 = "moment2.";
    private const string Row = "row.";
    private const string Column = "column.";

    private readonly ReformerModel _model;
    private readonly TrainingOptions _options;
    private readonly List<OptimizerSlot> _slots;
    private readonly TensorView[] _views;
    private readonly Tensor _state;
    private readonly Tensor _clip;
    private readonly float[] _clipValues = new float[2];

    public Optimizer(ReformerModel model, TrainingOptions options)
    {
        _model = model;
        _options = options;
        _slots = Slots(model.Config, options.Optimizer);
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
    public static long StateBytes(ReformerConfig config, OptimizerKind kind) =>
        Slots(config, kind).Sum(slot => slot.Shape.ElementCount) * sizeof(float);

    /// <summary>Scratch that an update needs, in bytes.</summary>
    public static long WorkspaceBytes(ReformerConfig config, ReformerContext context, TrainingOptions options)
    {
        TensorView[] shapes = [.. new ParameterLayout(config).Specs.Select(spec => TensorView.Meta(spec.Shape))];
        long bytes = new GlobalNorm { Gradients = shapes, Result = TensorView.Meta(new TensorShape(2)) }.WorkspaceBytes(
            context);
        if (options.Optimizer == OptimizerKind.Adafactor)
        {
            List<OptimizerSlot> slots = Slots(config, options.Optimizer);
            TensorView[] views = [.. slots.Select(slot => TensorView.Meta(slot.Shape))];
            for (int slot = 0; slot < slots.Count; slot++)
            {
                TensorView parameter = shapes[slots[slot].Parameter];
                Adafactor update = Adafactor(options, slots, views, slot, parameter, parameter, default, 0, 1);
                bytes = Math.Max(bytes, update.WorkspaceBytes(context, Pass.Forward));
                slot += parameter.Shape.Rank >= 2 ? 1 : 0;
            }
        }

        return bytes;
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
        for (int slot = 0; slot < _slots.Count; slot++)
        {
            Parameter parameter = _model.Parameters[_slots[slot].Parameter];
            if (_options.Optimizer == OptimizerKind.Adafactor)
            {
                Adafactor(
                        _options,
                        _slots,
                        _views,
                        slot,
                        parameter.Value,
                        parameter.Gradient,
                        _clip,
                        learningRate,
                        step
                    )
                    .Run(_model.Workspace);
                slot += parameter.Value.Shape.Rank >= 2 ? 1 : 0;
                continue;
            }

            new AdamW
            {
                LearningRate = (float)learningRate,
                Beta1 = (float)_options.Beta1,
                Beta2 = (float)_options.Beta2,
                Epsilon = (float)_options.Epsilon,
                WeightDecay = Decay(_options, parameter.Value),
                Step = step,
                Parameter = parameter.Value,
                Gradient = parameter.Gradient,
                Moment1 = _views[slot],
                Moment2 = _views[slot + 1],
                Clip = _clip,
            }.Run(_model.Context);
            slot++;
        }
    }

    public void Save(string path) =>
        SafetensorsWriter.Write(
            path, [.. _slots.Select((slot, i) => ModelFile.Item(slot.Name, Sizes(slot.Shape), _views[i]))]);

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
                        + $"{SafetensorsFormat.Describe(entry.Shape)}"
                );
            }

            ModelFile.Read(file, entry, _views[i]);
        }
    }

    public void Dispose()
    {
        _state.Dispose();
        _clip.Dispose();
    }

    /// <summary>
    /// AdamW: two moments of each parameter's shape. Adafactor: a row and a column for matrices, one second moment for
    /// vectors. The slots of a parameter follow each other.
    /// </summary>
    private static List<OptimizerSlot> Slots(ReformerConfig config, OptimizerKind kind)
    {
        IReadOnlyList<ParameterSpec> specs = new ParameterLayout(config).Specs;
        var slots = new List<OptimizerSlot>();
        for (int i = 0; i < specs.Count; i++)
        {
            ParameterSpec spec = specs[i];
            if (kind == OptimizerKind.AdamW)
            {
                slots.Add(new OptimizerSlot(Moment1 + spec.Name, i, spec.Shape));
                slots.Add(new OptimizerSlot(Moment2 + spec.Name, i, spec.Shape));
            }
            else if (spec.Shape.Rank >= 2)
            {
                slots.Add(
                    new OptimizerSlot(Row + spec.Name, i, new TensorShape(spec.Shape.ElementCount / spec.Shape[^1])));
                slots.Add(new OptimizerSlot(Column + spec.Name, i, new TensorShape(spec.Shape[^1])));
            }
            else
            {
                slots.Add(new OptimizerSlot(Moment2 + spec.Name, i, spec.Shape));
            }
        }

        return slots;
    }

    private static Adafactor Adafactor(
        TrainingOptions options, List<OptimizerSlot> slots, TensorView[] views, int slot,
        TensorView parameter, TensorView gradient, TensorView clip, double learningRate, long step)
    {
        bool factored = slots[slot].Name.StartsWith(Row, StringComparison.Ordinal);
        return new Adafactor
        {
            LearningRate = (float)learningRate,
            DecayExponent = (float)options.AdafactorDecayExponent,
            ClipThreshold = (float)options.AdafactorClipThreshold,
            Epsilon1 = 1e-30f,
            Epsilon2 = 1e-3f,
            WeightDecay = Decay(options, parameter),
            ScaleParameter = options.AdafactorScaleParameter,
            Step = step,
            Parameter = parameter,
            Gradient = gradient,
            Row = factored ? views[slot] : default,
            Column = factored ? views[slot + 1] : default,
            Moment2 = factored ? default : views[slot],
            Clip = clip,
        };
    }

    private static float Decay(TrainingOptions options, TensorView parameter) =>
        parameter.Shape.Rank >= 2 ? (float)options.WeightDecay : 0;

    private static long[] Sizes(TensorShape shape)
    {
        var sizes = new long[shape.Rank];
        shape.CopyTo(sizes);
        return sizes;
    }
}
