using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Training;

/// <summary>Adafactor: a row and a column for matrices, one second moment for vectors.</summary>
internal sealed class AdafactorRule(TrainingOptions options) : UpdateRule(options)
{
    public override IEnumerable<OptimizerSlot> SlotsOf(ParameterSpec parameter)
    {
        TensorShape shape = parameter.Shape;
        return IsFactored(shape)
            ?
            [
                new OptimizerSlot("row." + parameter.Name, new TensorShape(shape.ElementCount / shape[^1])),
                new OptimizerSlot("column." + parameter.Name, new TensorShape(shape[^1])),
            ]
            : [new OptimizerSlot("moment2." + parameter.Name, shape)];
    }

    public override long WorkspaceBytes(
        ReformerContext context, TensorView parameter, ReadOnlySpan<TensorView> slots) =>
        Op(parameter, parameter, slots, clip: default, learningRate: 0, step: 1).WorkspaceBytes(context);

    public override void Update(
        Workspace workspace, TensorView parameter, TensorView gradient, ReadOnlySpan<TensorView> slots, TensorView clip,
        double learningRate, long step) =>
        Op(parameter, gradient, slots, clip, learningRate, step).Run(workspace);

    private static bool IsFactored(TensorShape shape) => shape.Rank >= 2;

    private Adafactor Op(
        TensorView parameter, TensorView gradient, ReadOnlySpan<TensorView> slots, TensorView clip, double learningRate,
        long step)
    {
        bool factored = IsFactored(parameter.Shape);
        return new Adafactor
        {
            LearningRate = (float)learningRate,
            DecayExponent = (float)Options.AdafactorDecayExponent,
            ClipThreshold = (float)Options.AdafactorClipThreshold,
            Epsilon1 = 1e-30f,
            Epsilon2 = 1e-3f,
            WeightDecay = DecayOf(parameter),
            ScaleParameter = Options.AdafactorScaleParameter,
            Step = step,
            Parameter = parameter,
            Gradient = gradient,
            Row = factored ? slots[0] : default,
            Column = factored ? slots[1] : default,
            Moment2 = factored ? default : slots[0],
            Clip = clip,
        };
    }
}
