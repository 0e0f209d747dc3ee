using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>
/// What a head reads of a stack of layers: the final norm of the two streams, of as many rows at a time as the head has
/// room for, and the way of their gradients back into the streams.
/// </summary>
/// <param name="config">The model's.</param>
/// <param name="parameters">The model's.</param>
/// <param name="shape">Of the pass.</param>
/// <param name="stack">The layers.</param>
internal sealed class FinalHidden(
    ReformerConfig config, ModelParameters parameters, PassShape shape, LayerStack stack)
{
    /// <summary>The final norm of some rows. Dropout counts rows of the whole pass, wherever a call begins.</summary>
    /// <param name="firstRow">The first row of the streams.</param>
    /// <param name="hidden">Takes the results [rows, W], W being the configuration's final width.</param>
    /// <param name="gradient">Gradient of the results; absent without gradients.</param>
    /// <param name="options">Those of the pass.</param>
    public FinalNorm Rows(long firstRow, TensorView hidden, TensorView gradient, in RunOptions options)
    {
        long rows = hidden.Shape[0];
        return new()
        {
            Combine = config.FinalCombine,
            Epsilon = (float)config.LayerNormEps,
            Dropout = options.Dropout ? (float)config.HiddenDropoutProb : 0,
            Seed = options.Seed,
            Step = options.Step,
            FirstRow = firstRow,
            Stream1 = Of(stack.Stream1),
            Stream2 = Of(stack.Stream2),
            Weight = parameters.FinalNormWeight,
            Bias = parameters.FinalNormBias,
            Y = hidden,
            GradY = gradient,
            GradStream1 = shape.Backward ? Of(stack.GradStream1) : default,
            GradStream2 = shape.Backward ? Of(stack.GradStream2) : default,
            GradWeight = shape.Backward ? parameters.FinalNormWeightGradient : default,
            GradBias = shape.Backward ? parameters.FinalNormBiasGradient : default,
        };

        TensorView Of(TensorView stream) =>
            stream.Reshape(new TensorShape(shape.Rows, config.HiddenSize)).Rows(firstRow, rows);
    }

    /// <summary>For heads that do not read every row: what they leave out has no gradient.</summary>
    public void ZeroStreamGradients()
    {
        stack.GradStream1.Zero();
        stack.GradStream2.Zero();
    }
}
