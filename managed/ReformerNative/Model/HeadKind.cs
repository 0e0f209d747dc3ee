using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>
/// What a head is before it has memory. To add one, write a file with its kind and its <see cref="Head"/>, name it in
/// <see cref="ReformerTask"/> and add it to <see cref="All"/>; nothing else asks which head a model has. (Question
/// answering, for example: two outputs for each token and two labels for each example, in a file like the sequence
/// classifier's.)
/// </summary>
internal abstract class HeadKind
{
    /// <summary>Every head there is.</summary>
    public static IReadOnlyList<HeadKind> All { get; } =
        [new CausalLanguageModel(), new MaskedLanguageModel(), new SequenceClassifier()];

    /// <summary>What a configuration calls it.</summary>
    public abstract ReformerTask Task { get; }

    /// <summary>What a sentence calls a model with it.</summary>
    public abstract string Name { get; }

    /// <summary>What <c>architectures</c> calls a model with it, which is Hugging Face's name.</summary>
    public abstract string Architecture { get; }

    /// <summary>Whether tokens must see the past alone (true), or must not (false); null for either.</summary>
    public virtual bool? IsDecoder => null;

    /// <summary>Whether the outputs at a token say what the next one is, so that texts can be continued.</summary>
    public virtual bool PredictsNextToken => false;

    /// <summary>Second names that a checkpoint may have for a parameter; some have both, some only one.</summary>
    public virtual IReadOnlyDictionary<string, string> SecondNames { get; } = new Dictionary<string, string>();

    /// <summary>The kind for a task.</summary>
    public static HeadKind Of(ReformerTask task) => All.First(kind => kind.Task == task);

    /// <summary>Its parameters, in the order of a Hugging Face state dictionary, in which they come last.</summary>
    public abstract IReadOnlyList<ParameterSpec> Parameters(ReformerConfig config);

    /// <summary>Makes the head of a pass.</summary>
    public abstract Head Create(HeadParts parts);
}

/// <summary>What the head of a pass is made of.</summary>
/// <param name="Config">The model's.</param>
/// <param name="Shape">Of the pass.</param>
/// <param name="Hidden">What it reads.</param>
/// <param name="Values">Its parameters, in the order of its kind.</param>
/// <param name="Gradients">Their gradients; absent views in a pass without gradients.</param>
/// <param name="Allocate">Gives buffers.</param>
internal sealed record HeadParts(
    ReformerConfig Config, PassShape Shape, FinalHidden Hidden, IReadOnlyList<TensorView> Values,
    IReadOnlyList<TensorView> Gradients, PassAllocator Allocate);
