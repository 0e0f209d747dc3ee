using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>What one layer keeps of its forward pass; the rest is absent.</summary>
internal readonly record struct KeptTensors(
    TensorView Stream1, TensorView Stream2, TensorView Query, TensorView Key, TensorView Value, TensorView LogSumExp,
    TensorView Hidden, TensorView Result, TensorView Buckets);

/// <summary>
/// What the layers keep of the forward pass for the backward pass: what is asked for, and with float residuals always
/// the hashes, because streams that come back rounded might hash to other buckets.
/// </summary>
internal sealed class KeptLayers
{
    private readonly ReformerConfig _config;
    private readonly LayerForms _forms;
    private readonly PassShape _shape;
    private readonly KeepActivations[] _levels;
    private readonly KeptTensors[] _kept;
    private readonly TensorView[] _hashes;

    /// <summary>Allocates.</summary>
    /// <param name="config">The model's.</param>
    /// <param name="forms">The forms of its layers.</param>
    /// <param name="shape">Of the pass.</param>
    /// <param name="keep">What each layer keeps; null for nothing.</param>
    /// <param name="allocate">Gives the buffers.</param>
    public KeptLayers(
        ReformerConfig config, LayerForms forms, PassShape shape, IReadOnlyList<KeepActivations>? keep,
        PassAllocator allocate)
    {
        if (keep is not null && keep.Count != forms.Count)
        {
            throw new ArgumentException(
                $"keep: expected one for each of {forms.Count} layers, found {keep.Count}", nameof(keep));
        }

        _config = config;
        _forms = forms;
        _shape = shape;
        _levels = [.. keep ?? new KeepActivations[forms.Count]];
        _kept = [.. _levels.Select((level, layer) => Allocate(layer, level, allocate))];
        _hashes = AllocateHashes(allocate);
    }

    /// <summary>What a layer keeps.</summary>
    public KeptTensors this[int layer] => _kept[layer];

    /// <summary>Where a layer's hashes go if it does not keep them as part of all activations; may be absent.</summary>
    public TensorView Hashes(int layer) => _hashes[layer];

    /// <summary>Whether the layers keep what is asked for; null asks for nothing.</summary>
    public bool Are(IReadOnlyList<KeepActivations>? keep)
    {
        if (keep is not null && keep.Count != _levels.Length)
        {
            return false;
        }

        for (int layer = 0; layer < _levels.Length; layer++)
        {
            if (_levels[layer] != (keep is null ? KeepActivations.Nothing : keep[layer]))
            {
                return false;
            }
        }

        return true;
    }

    /// <summary>What a layer's kept buffers take at a level, in bytes.</summary>
    public long Bytes(int layer, KeepActivations level)
    {
        long bytes = 0;
        Allocate(layer, level, (_, shape, type) =>
        {
            var view = TensorView.Meta(shape, type);
            bytes = checked(bytes + view.ByteCount);
            return view;
        });
        return bytes;
    }

    private KeptTensors Allocate(int layer, KeepActivations level, PassAllocator allocate)
    {
        if (level == KeepActivations.Nothing)
        {
            return default;
        }

        long b = _shape.Batch;
        long t = _shape.Length;
        long heads = _config.NumAttentionHeads;
        var stream = new TensorShape(b, t, _config.HiddenSize);
        KeptTensors kept = new()
        {
            Stream1 = allocate("kept streams", stream, DType.Float32),
            Stream2 = allocate("kept streams", stream, DType.Float32),
        };
        if (level == KeepActivations.Streams)
        {
            return kept;
        }

        AttentionOptions attention = _forms.Attention(layer, dropout: false, masked: false);
        var merged = new TensorShape(b, t, heads * _config.AttentionHeadSize);
        return kept with
        {
            Query = Activations(merged),
            Key = attention.SharedQk ? default : Activations(merged),
            Value = Activations(merged),
            LogSumExp = Activations(new TensorShape(b, heads, t)),
            Hidden = Activations(new TensorShape(b * t, _config.FeedForwardSize)),
            Result = Activations(merged),

            // With float residuals they are kept anyway.
            Buckets = _forms.IsHashed(layer) && _config.Residual == ResidualMode.Exact
                ? allocate("kept activations", attention.BucketsShape(b, heads, t), DType.Int32)
                : default,
        };

        TensorView Activations(TensorShape shape) => allocate("kept activations", shape, DType.Float32);
    }

    /// <summary>
    /// Float residuals: each layer that hashes keeps its hashes for the backward pass; without one they share a buffer.
    /// Exact residuals hash again; only an inspection reads their hashes.
    /// </summary>
    private TensorView[] AllocateHashes(PassAllocator allocate)
    {
        var hashes = new TensorView[_forms.Count];
        if (_config.Residual == ResidualMode.Exact && !_shape.Inspect)
        {
            return hashes;
        }

        bool own = _shape.Backward && _config.Residual == ResidualMode.Float;
        TensorView shared = default;
        for (int layer = 0; layer < hashes.Length; layer++)
        {
            if (_forms.IsHashed(layer))
            {
                if (own || shared.IsAbsent)
                {
                    AttentionOptions attention = _forms.Attention(layer, dropout: false, masked: false);
                    TensorShape shape = attention.BucketsShape(_shape.Batch, _config.NumAttentionHeads, _shape.Length);
                    shared = allocate("hashes", shape, DType.Int32);
                }

                hashes[layer] = shared;
            }
        }

        return hashes;
    }
}
