using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>
/// Values and gradients of all parameters, each in one allocation, and the views that ops take. Without a context there
/// is no memory: the views have shapes only, which is what a memory plan needs.
/// </summary>
internal sealed class ModelParameters : IDisposable
{
    /// <summary>Each tensor begins at a multiple of so many floats: 256 bytes, as native buffers do.</summary>
    private const long Alignment = 64;

    private readonly ReformerContext? _context;
    private readonly long _elements;
    private Tensor? _values;
    private Tensor? _gradients;

    public ModelParameters(ReformerConfig config, ReformerContext? context)
    {
        _context = context;
        Layout = new ParameterLayout(config);
        _elements = Layout.Specs.Sum(spec => (spec.Shape.ElementCount + Alignment - 1) / Alignment * Alignment);
        _values = Allocate();
        Values = Views(_values);
        Gradients = new TensorView[Layout.Specs.Count];
        Blocks = [.. Layout.Layers.Select(layer => Block(Values, layer))];
        BlockGradients = [];
        Positions = Tables(Values);
        All = [.. Enumerable.Range(0, Layout.Specs.Count).Select(index => new Parameter(this, index))];
    }

    public ParameterLayout Layout { get; }

    public IReadOnlyList<Parameter> All { get; }

    public TensorView[] Values { get; }

    /// <summary>Absent views until <see cref="EnsureGradients"/>.</summary>
    public TensorView[] Gradients { get; private set; }

    public BlockParameters[] Blocks { get; }

    public BlockParameters[] BlockGradients { get; private set; }

    public TensorView Word => Values[Layout.Word];

    public TensorView WordGradient => Gradients[Layout.Word];

    public TensorView FinalNormWeight => Values[Layout.FinalNormWeight];

    public TensorView FinalNormWeightGradient => Gradients[Layout.FinalNormWeight];

    public TensorView FinalNormBias => Values[Layout.FinalNormBias];

    public TensorView FinalNormBiasGradient => Gradients[Layout.FinalNormBias];

    public PositionTables Positions { get; }

    public PositionTables PositionGradients { get; private set; }

    /// <summary>Bytes of the values, and again of the gradients.</summary>
    public long Bytes => _elements * sizeof(float);

    /// <summary>Allocates gradients, zeroed, at the first call.</summary>
    public void EnsureGradients()
    {
        if (BlockGradients.Length > 0)
        {
            return;
        }

        _gradients = Allocate();
        _gradients?.Zero();
        Gradients = Views(_gradients);
        PositionGradients = Tables(Gradients);
        BlockGradients = [.. Layout.Layers.Select(layer => Block(Gradients, layer))];
    }

    /// <exception cref="ObjectDisposedException">The model is disposed.</exception>
    public void RequireMemory() =>
        ObjectDisposedException.ThrowIf(_context is not null && _values is null, typeof(ReformerModel));

    public void ZeroGradients() => _gradients?.Zero();

    /// <summary>Draws the initial values: each tensor is a stream of its own under the seed.</summary>
    public void Initialize(ulong seed)
    {
        for (int i = 0; i < Values.Length; i++)
        {
            new RandomNormal
            {
                Seed = seed,
                Layer = i,
                Site = RandomSite.Parameters,
                Mean = (float)Layout.Specs[i].Mean,
                StandardDeviation = (float)Layout.Specs[i].StandardDeviation,
                Destination = Values[i],
            }.Run(_context!);
        }
    }

    public void Dispose()
    {
        _values?.Dispose();
        _gradients?.Dispose();
        _values = null;
        _gradients = null;
    }

    private Tensor? Allocate() => _context is null ? null : new Tensor(_context, new TensorShape(_elements));

    private TensorView[] Views(Tensor? tensor)
    {
        var views = new TensorView[Layout.Specs.Count];
        long start = 0;
        for (int i = 0; i < views.Length; i++)
        {
            TensorShape shape = Layout.Specs[i].Shape;
            views[i] = tensor is null ? TensorView.Meta(shape) : tensor.View.Part(start, shape);
            start += (shape.ElementCount + Alignment - 1) / Alignment * Alignment;
        }

        return views;
    }

    private PositionTables Tables(TensorView[] views) =>
        Layout.Positions.Length == 0
            ? default
            : new PositionTables([.. Layout.Positions.Select(index => views[index])]);

    private static BlockParameters Block(TensorView[] views, LayerIndices layer) => new()
    {
        AttentionNormWeight = views[layer.AttentionNormWeight],
        AttentionNormBias = views[layer.AttentionNormBias],
        Query = views[layer.Query],
        Key = layer.Key < 0 ? default : views[layer.Key],
        Value = views[layer.Value],
        Output = views[layer.Output],
        FeedForwardNormWeight = views[layer.FeedForwardNormWeight],
        FeedForwardNormBias = views[layer.FeedForwardNormBias],
        W1 = views[layer.W1],
        B1 = views[layer.B1],
        W2 = views[layer.W2],
        B2 = views[layer.B2],
    };
}
