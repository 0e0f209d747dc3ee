using ReformerNative.Model;
using ReformerNative.Tensors;

namespace ReformerNative.Training;

/// <summary>A tensor that an update rule keeps for a parameter.</summary>
/// <param name="Name">Its name in a file.</param>
/// <param name="Shape">Its shape.</param>
internal readonly record struct OptimizerSlot(string Name, TensorShape Shape);

/// <summary>How a parameter is updated, and what is kept for it between steps.</summary>
internal abstract class UpdateRule(TrainingOptions options)
{
    /// <summary>The options of the run.</summary>
    protected TrainingOptions Options { get; } = options;

    /// <summary>The rule that the options name.</summary>
    public static UpdateRule Of(TrainingOptions options) => options.Optimizer switch
    {
        OptimizerKind.Adafactor => new AdafactorRule(options),
        _ => new AdamWRule(options),
    };

    /// <summary>The tensors kept for a parameter, zeros before the first step, in the order of the file.</summary>
    public abstract IEnumerable<OptimizerSlot> SlotsOf(ParameterSpec parameter);

    /// <summary>Scratch that an update needs, in bytes; views without memory are enough.</summary>
    public abstract long WorkspaceBytes(ReformerContext context, TensorView parameter, ReadOnlySpan<TensorView> slots);

    /// <summary>Updates a parameter and its tensors.</summary>
    /// <param name="workspace">Scratch of the context to run in.</param>
    /// <param name="parameter">The parameter.</param>
    /// <param name="gradient">Its gradient.</param>
    /// <param name="slots">Its tensors, in the order of <see cref="SlotsOf"/>.</param>
    /// <param name="clip">Result of the global norm.</param>
    /// <param name="learningRate">The rate of this step.</param>
    /// <param name="step">1 for the first.</param>
    public abstract void Update(
        Workspace workspace, TensorView parameter, TensorView gradient, ReadOnlySpan<TensorView> slots, TensorView clip,
        double learningRate, long step);

    /// <summary>Weights and embeddings decay, vectors do not.</summary>
    protected float DecayOf(TensorView parameter) => parameter.Shape.Rank >= 2 ? (float)Options.WeightDecay : 0;
}
