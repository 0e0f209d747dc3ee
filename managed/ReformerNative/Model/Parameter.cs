using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>One trainable tensor of a model. The model owns its memory.</summary>
public sealed class Parameter
{
    private readonly ModelParameters _owner;
    private readonly int _index;

    internal Parameter(ModelParameters owner, int index)
    {
        _owner = owner;
        _index = index;
    }

    /// <summary>Its name in a checkpoint, which is Hugging Face's.</summary>
    public string Name => _owner.Layout.Specs[_index].Name;

    /// <summary>Its shape in a checkpoint.</summary>
    public IReadOnlyList<long> Shape => _owner.Layout.Specs[_index].FileShape;

    /// <summary>
    /// Float32 values, in the shape that ops see (an axial table is [s, e]). Valid until the model is disposed.
    /// </summary>
    public TensorView Value
    {
        get
        {
            _owner.RequireMemory();
            return _owner.Values[_index];
        }
    }

    /// <summary>
    /// Float32 gradient of the same shape as <see cref="Value"/>; absent until the model first computes gradients.
    /// </summary>
    public TensorView Gradient
    {
        get
        {
            _owner.RequireMemory();
            return _owner.Gradients[_index];
        }
    }
}
