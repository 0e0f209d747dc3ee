using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Training;

/// <summary>Adafactor: a row and a column for matrices, one second moment for vectors.</summary>
internal sealed class AdafactorRule(TrainingOptions options) : UpdateRule(options)
{
    public override IReadOnlyList<string> Lists { get; } = ["row", "column", "moment2"];

    public override TensorShape? ShapeOf(int list, TensorShape parameter)
    {
        bool isFactored = parameter.Rank >= 2;
        return list switch
        {
            0 when isFactored => new TensorShape(parameter.ElementCount / parameter[^1]),
            1 when isFactored => new TensorShape(parameter[^1]),
            2 when !isFactored => parameter,
            _ => null,
        };
    }

    public override long WorkspaceBytes(ReformerContext context, in UpdateTensors tensors) =>
        Op(tensors, clip: default, learningRate: 0, step: 1).WorkspaceBytes(context);

    public override void Update(
        Workspace workspace, in UpdateTensors tensors, TensorView clip, double learningRate, long step) =>
        Op(tensors, clip, learningRate, step).Run(workspace);

    private Adafactor Op(in UpdateTensors tensors, TensorView clip, double learningRate, long step) => new()
    {
        LearningRate = (float)learningRate,
        DecayExponent = (float)Options.AdafactorDecayExponent,
        ClipThreshold = (float)Options.AdafactorClipThreshold,
        Epsilon1 = 1e-30f,
        Epsilon2 = 1e-3f,
        ScaleParameter = Options.AdafactorScaleParameter,
        Step = step,
        Parameters = tensors.Parameters,
        Gradients = tensors.Gradients,
        Rows = tensors.Lists[0],
        Columns = tensors.Lists[1],
        Moments2 = tensors.Lists[2],
        WeightDecays = tensors.WeightDecays,
        Clip = clip,
    };
}
