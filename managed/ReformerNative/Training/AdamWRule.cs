using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Training;

/// <summary>AdamW: two moments of each parameter's shape.</summary>
internal sealed class AdamWRule(TrainingOptions options) : UpdateRule(options)
{
    public override IEnumerable<OptimizerSlot> SlotsOf(ParameterSpec parameter) =>
    [
        new("moment1." + parameter.Name, parameter.Shape),
        new("moment2." + parameter.Name, parameter.Shape),
    ];

    public override long WorkspaceBytes(
        ReformerContext context, TensorView parameter, ReadOnlySpan<TensorView> slots) => 0;

    public override void Update(
        Workspace workspace, TensorView parameter, TensorView gradient, ReadOnlySpan<TensorView> slots, TensorView clip,
        double learningRate, long step) =>
        new AdamW
        {
            LearningRate = (float)learningRate,
            Beta1 = (float)Options.Beta1,
            Beta2 = (float)Options.Beta2,
            Epsilon = (float)Options.Epsilon,
            WeightDecay = DecayOf(parameter),
            Step = step,
            Parameter = parameter,
            Gradient = gradient,
            Moment1 = slots[0],
            Moment2 = slots[1],
            Clip = clip,
        }.Run(workspace.Context);
}
