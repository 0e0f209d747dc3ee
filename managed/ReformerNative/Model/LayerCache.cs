using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>
/// What one layer keeps of a sequence for the tokens that follow: keys and values, those of a local layer for its
/// window alone (row p mod S holds position p), and of an LSH layer its rotations and the last positions of each
/// bucket.
/// </summary>
internal sealed class LayerCache : IDisposable
{
    private Tensor? _keys;
    private Tensor? _values;
    private Tensor? _rotations;
    private Tensor? _rings;
    private Tensor? _counts;

    /// <summary>Positions that it has room for.</summary>
    public long Rows => _keys?.Shape[1] ?? 0;

    /// <summary>Empties it and makes room.</summary>
    public void Prepare(ReformerContext context, ReformerConfig config, AttentionOptions form, long rows)
    {
        Dispose();
        long heads = config.NumAttentionHeads;
        var shape = new TensorShape(1, rows, heads * config.AttentionHeadSize);
        _keys = new Tensor(context, shape);
        _values = new Tensor(context, shape);
        if (form.Kind == AttentionKind.Lsh)
        {
            _rotations = new Tensor(
                context, form.RotationsShape(config.Lsh.Rotations, 1, heads, config.AttentionHeadSize));
            _rings = new Tensor(context, form.RingsShape(1, heads), DType.Int32);
            _counts = new Tensor(context, form.CountsShape(1, heads), DType.Int32);
            _counts.Zero();
        }
    }

    /// <summary>Runs a layer over a whole prompt and takes what it computed.</summary>
    /// <param name="workspace">Scratch memory.</param>
    /// <param name="block">The layer.</param>
    /// <param name="keys">Room for all keys of the prompt [1, T, H·D], for layers that have less of their own.</param>
    /// <param name="values">The same for values.</param>
    /// <param name="buckets">Room for the buckets of an LSH layer; otherwise absent.</param>
    public void Fill(
        Workspace workspace, ReversibleBlock block, TensorView keys, TensorView values, TensorView buckets)
    {
        long length = block.Stream1.Shape[1];
        bool whole = Rows >= length;
        var shape = new TensorShape(1, length, _keys!.Shape[2]);
        TensorView key = whole ? _keys.View.Part(0, shape) : keys;
        TensorView value = whole ? _values!.View.Part(0, shape) : values;
        bool shared = block.Attention.SharedQk;
        (block with
        {
            KeptQuery = shared ? key : default,
            KeptKey = shared ? default : key,
            KeptValue = value,
            Buckets = _rings is null ? block.Buckets : buckets,
        }).Forward(workspace);
        if (!whole)
        {
            CopyLastRows(key, _keys, length);
            CopyLastRows(value, _values!, length);
        }

        if (_rings is not null)
        {
            _rotations!.View.CopyFrom(block.Rotations);
            new BucketRings { Buckets = buckets, Rings = _rings, Counts = _counts! }.Run(workspace.Context);
        }
    }

    /// <summary>
    /// Moves to more rows if there are fewer than needed. A row keeps its place, since rows wrap only when there are no
    /// more to come.
    /// </summary>
    public void Grow(long needed, long wanted, long used)
    {
        if (Rows < needed)
        {
            _keys = Larger(_keys!, wanted, used);
            _values = Larger(_values!, wanted, used);
        }
    }

    /// <summary>A layer for one more token.</summary>
    /// <param name="block">The layer in a pass of one token.</param>
    /// <param name="form">What a token attends to in a whole pass.</param>
    /// <param name="position">Position of the token.</param>
    public ReversibleBlockDecode Decode(in ReversibleBlock block, AttentionOptions form, long position) => new()
    {
        Layer = block.Layer,
        Attention = form,
        Heads = block.Heads,
        Activation = block.Activation,
        LayerNormEpsilon = block.LayerNormEpsilon,
        Residual = block.Residual,
        GridExponent = block.GridExponent,
        Position = position,
        Stream1 = block.Stream1,
        Stream2 = block.Stream2,
        Keys = _keys!,
        Values = _values!,
        Rotations = _rotations,
        Rings = _rings,
        Counts = _counts,
        RangeReport = block.RangeReport,
        Parameters = block.Parameters,
    };

    /// <summary>Frees the memory.</summary>
    public void Dispose()
    {
        _keys?.Dispose();
        _values?.Dispose();
        _rotations?.Dispose();
        _rings?.Dispose();
        _counts?.Dispose();
        _keys = _values = _rotations = _rings = _counts = null;
    }

    /// <summary>Takes the last rows of a prompt that is longer than the cache.</summary>
    private static void CopyLastRows(TensorView from, TensorView to, long length)
    {
        long rows = to.Shape[1];
        long width = from.Shape[2];
        long start = length - rows;
        long wrapped = start % rows; // place of position `start`
        Copy(start, wrapped, rows - wrapped);
        Copy(length - wrapped, 0, wrapped);

        void Copy(long position, long row, long count)
        {
            if (count > 0)
            {
                var shape = new TensorShape(count, width);
                to.Part(row * width, shape).CopyFrom(from.Part(position * width, shape));
            }
        }
    }

    private static Tensor Larger(Tensor tensor, long rows, long used)
    {
        long width = tensor.Shape[2];
        var larger = new Tensor(tensor.Context, new TensorShape(1, rows, width));
        var shape = new TensorShape(used, width);
        larger.View.Part(0, shape).CopyFrom(tensor.View.Part(0, shape));
        tensor.Dispose();
        return larger;
    }
}
