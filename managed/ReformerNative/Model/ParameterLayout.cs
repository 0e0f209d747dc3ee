using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>What a parameter is before it has memory.</summary>
/// <param name="Name">Its name in a checkpoint, which is Hugging Face's.</param>
/// <param name="FileShape">Its shape in a checkpoint.</param>
/// <param name="Shape">The shape that ops see; as many elements.</param>
/// <param name="Mean">Mean of its initial values.</param>
/// <param name="StandardDeviation">Standard deviation of its initial values.</param>
internal sealed record ParameterSpec(
    string Name, long[] FileShape, TensorShape Shape, double Mean, double StandardDeviation)
{
    /// <summary>One whose mean is 0 and which ops see in its shape.</summary>
    public static ParameterSpec Of(string name, long[] shape, double standardDeviation) =>
        new(name, shape, new TensorShape(shape), 0, standardDeviation);
}

/// <summary>Indices of a layer's parameters in the list; -1 where it has none.</summary>
internal readonly record struct LayerIndices(
    int AttentionNormWeight, int AttentionNormBias, int Query, int Key, int Value, int Output,
    int FeedForwardNormWeight, int FeedForwardNormBias, int W1, int B1, int W2, int B2);

/// <summary>
/// The parameters that a configuration asks for, in the order of a Hugging Face state dictionary, and where each of
/// them is. Linear weights are [out, in].
/// </summary>
internal sealed class ParameterLayout
{
    private readonly List<ParameterSpec> _specs = [];

    public ParameterLayout(ReformerConfig config)
    {
        long e = config.HiddenSize;
        long f = config.FeedForwardSize;
        long heads = (long)config.NumAttentionHeads * config.AttentionHeadSize;
        double range = config.InitializerRange;
        Word = Add("reformer.embeddings.word_embeddings.weight", [config.VocabSize, e], range);
        Positions = AddPositions(config);
        Layers = new LayerIndices[config.AttnLayers.Count];
        for (int layer = 0; layer < Layers.Length; layer++)
        {
            string attention = $"reformer.encoder.layers.{layer}.attention";
            string feedForward = $"reformer.encoder.layers.{layer}.feed_forward";
            bool shared = config.AttnLayers[layer] is AttentionKind.Lsh or AttentionKind.Auto;

            // Arguments are evaluated in this order, which is the order in the file.
            Layers[layer] = new LayerIndices(
                AttentionNormWeight: AddNorm($"{attention}.layer_norm.weight", e, 1),
                AttentionNormBias: AddNorm($"{attention}.layer_norm.bias", e, 0),
                Query: Add($"{attention}.self_attention.{(shared ? "query_key" : "query")}.weight", [heads, e], range),
                Key: shared ? -1 : Add($"{attention}.self_attention.key.weight", [heads, e], range),
                Value: Add($"{attention}.self_attention.value.weight", [heads, e], range),
                Output: Add($"{attention}.output.dense.weight", [e, heads], range),
                FeedForwardNormWeight: AddNorm($"{feedForward}.layer_norm.weight", e, 1),
                FeedForwardNormBias: AddNorm($"{feedForward}.layer_norm.bias", e, 0),
                W1: Add($"{feedForward}.dense.dense.weight", [f, e], range),
                B1: Add($"{feedForward}.dense.dense.bias", [f], 0),
                W2: Add($"{feedForward}.output.dense.weight", [e, f], range),
                B2: Add($"{feedForward}.output.dense.bias", [e], 0));
        }

        FinalNormWeight = AddNorm("reformer.encoder.layer_norm.weight", config.FinalWidth, 1);
        FinalNormBias = AddNorm("reformer.encoder.layer_norm.bias", config.FinalWidth, 0);
        int head = _specs.Count;
        _specs.AddRange(HeadKind.Of(config.Task).Parameters(config));
        Head = head.._specs.Count;
        Count = _specs.Sum(spec => spec.Shape.ElementCount);
    }

    public IReadOnlyList<ParameterSpec> Specs => _specs;

    /// <summary>Elements of all parameters.</summary>
    public long Count { get; }

    public int Word { get; }

    public int[] Positions { get; }

    public LayerIndices[] Layers { get; }

    public int FinalNormWeight { get; }

    public int FinalNormBias { get; }

    /// <summary>Those of the head, which come last.</summary>
    public Range Head { get; }

    private int[] AddPositions(ReformerConfig config)
    {
        const string prefix = "reformer.embeddings.position_embeddings";
        switch (config.Positions)
        {
            case PositionEncoding.Learned:
                return
                [
                    Add(
                        $"{prefix}.embedding.weight", [config.MaxPositionEmbeddings, config.HiddenSize],
                        config.InitializerRange),
                ];

            case PositionEncoding.Axial:
                int axes = config.AxialPosShape.Count;
                return [.. Enumerable.Range(0, axes).Select(axis =>
                {
                    // [1, .., s_i, .., 1, e_i], the form in which the tables broadcast against each other.
                    long[] fileShape = [.. Enumerable.Repeat(1L, axes), config.AxialPosEmbdsDim[axis]];
                    fileShape[axis] = config.AxialPosShape[axis];
                    return Add(
                        $"{prefix}.weights.{axis}", fileShape, config.AxialNormStd,
                        new TensorShape(config.AxialPosShape[axis], config.AxialPosEmbdsDim[axis]));
                })];

            default:
                return [];
        }
    }

    private int AddNorm(string name, long width, double mean) => Add(name, [width], 0, mean: mean);

    private int Add(string name, long[] fileShape, double standardDeviation, TensorShape? shape = null, double mean = 0)
    {
        _specs.Add(new ParameterSpec(name, fileShape, shape ?? new TensorShape(fileShape), mean, standardDeviation));
        return _specs.Count - 1;
    }
}
