using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Training;

/// <summary>AdamW: two moments of each parameter's shape.</summary>
internal sealed class AdamWRule(TrainingOptions options) : UpdateRule(options)
{
    public override IReadOnlyList<string> Lists { get; } = ["moment1", "moment2"];

    public override TensorShape? ShapeOf(int list, TensorShape parameter) => parameter;

    public override long WorkspaceBytes(ReformerContext context, in UpdateTensors tensors) => 0;

    public override void Update(
        Workspace workspace, in UpdateTensors tensors, TensorView clip, double learningRate, long step) =>
        new AdamW
        {
            LearningRate = (float)learningRate,
            Beta1 = (float)Options.Beta1,
            Beta2 = (float)Options.Beta2,
            Epsilon = (float)Options.Epsilon,
            Step = step,
            Parameters = tensors.Parameters,
            Gradients = tensors.Gradients,
            Moments1 = tensors.Lists[0],
            Moments2 = tensors.Lists[1],
            WeightDecays = tensors.WeightDecays,
            Clip = clip,
        }.Run(workspace.Context);
}
