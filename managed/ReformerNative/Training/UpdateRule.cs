using ReformerNative.Tensors;

namespace ReformerNative.Training;

/// <summary>What an update works on: entry i of each list belongs to parameter i.</summary>
/// <param name="Parameters">Of the model.</param>
/// <param name="Gradients">Of the parameters.</param>
/// <param name="Lists">What the rule keeps, in the order of <see cref="UpdateRule.Lists"/>; absent views where it keeps
/// nothing.</param>
/// <param name="WeightDecays">Of the parameters.</param>
internal readonly record struct UpdateTensors(
    TensorView[] Parameters, TensorView[] Gradients, TensorView[][] Lists, float[] WeightDecays);

/// <summary>How parameters are updated, and what is kept for them between steps.</summary>
internal abstract class UpdateRule(TrainingOptions options)
{
    /// <summary>Names of the lists of tensors that are kept, zeros before the first step.</summary>
    public abstract IReadOnlyList<string> Lists { get; }

    /// <summary>The options of the run.</summary>
    protected TrainingOptions Options { get; } = options;

    /// <summary>The rule that the options name.</summary>
    public static UpdateRule Of(TrainingOptions options) => options.Optimizer switch
    {
        OptimizerKind.Adafactor => new AdafactorRule(options),
        _ => new AdamWRule(options),
    };

    /// <summary>The shape of the tensor that a list has for a parameter; null when it has none.</summary>
    public abstract TensorShape? ShapeOf(int list, TensorShape parameter);

    /// <summary>Scratch that an update needs, in bytes; views without memory are enough.</summary>
    public abstract long WorkspaceBytes(ReformerContext context, in UpdateTensors tensors);

    /// <summary>Updates all parameters and what is kept for them.</summary>
    /// <param name="workspace">Scratch of the context to run in.</param>
    /// <param name="tensors">What it works on.</param>
    /// <param name="clip">Result of the global norm.</param>
    /// <param name="learningRate">The rate of this step.</param>
    /// <param name="step">1 for the first.</param>
    public abstract void Update(
        Workspace workspace, in UpdateTensors tensors, TensorView clip, double learningRate, long step);

    /// <summary>Weights and embeddings decay, vectors do not.</summary>
    public float DecayOf(TensorShape parameter) => parameter.Rank >= 2 ? (float)Options.WeightDecay : 0;
}
