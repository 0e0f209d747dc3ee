using System.Numerics.Tensors;
using ReformerNative.Ops;

namespace ReformerNative.Benchmarks;

/// <summary>
/// Attention of one example as one writes it in C#: for each query a list of keys, dot products, a softmax and a
/// weighted sum, with System.Numerics.Tensors and <see cref="Parallel"/>. Dense attention lists all keys, LSH attention
/// those of its windows in all rounds. Same numbers as the native op (a test holds both together), for the options that
/// the benchmarks use: no mask, no dropout, no duplicate correction, a window of slots that wraps, keys divided by
/// their root mean square.
/// </summary>
internal sealed class TensorAttention
{
    private const float Epsilon = 1e-6f; // of the key norm

    private readonly AttentionOptions _options;
    private readonly int _length;
    private readonly int _heads;
    private readonly int _size;
    private readonly ParallelOptions _parallel;
    private readonly float _scale;
    private readonly bool _isLsh;
    private readonly int _padded;
    private readonly int[] _order; // [H, R, padded]: the position at each slot
    private readonly int[] _slots; // [H, R, padded]: the slot of each position
    private readonly float[] _keys; // [T, H, D]
    private readonly float[] _gradKeys;
    private readonly int[][] _seen; // [H]: the keys of a query
    private readonly float[][] _scores;
    private readonly float[][] _gradients;

    /// <param name="options">Full attention, or LSH attention in the form of the preset trax.</param>
    /// <param name="length">T.</param>
    /// <param name="heads">H.</param>
    /// <param name="headSize">D.</param>
    /// <param name="threads">Most threads; 0 for all processors.</param>
    public TensorAttention(AttentionOptions options, int length, int heads, int headSize, int threads)
    {
        AttentionPreset trax = AttentionPreset.Trax;
        _isLsh = options.Kind == AttentionKind.Lsh;
        if (
            options.Dropout != 0
            || options.LogitScale != 0
            || (
                _isLsh
                    ? options.Window != trax.Window
                        || options.Duplicates != trax.Duplicates
                        || options.KeyNorm != trax.KeyNorm
                        || !options.Wrap
                        || !options.RepeatChunks
                        || options.ChunksBefore != 1
                        || options.ChunksAfter != 0
                    : options.Kind != AttentionKind.Full || options.SharedQk
            )
        )
        {
            throw new NotSupportedException(
                $"Expected full attention or LSH attention in the form trax, got {options}.");
        }

        _options = options;
        _length = length;
        _heads = heads;
        _size = headSize;
        _parallel = new ParallelOptions
        {
            MaxDegreeOfParallelism = threads == 0 ? Environment.ProcessorCount : threads,
        };
        _scale = 1 / MathF.Sqrt(headSize);
        int chunk = _isLsh ? (int)options.ChunkLength : 1;
        _padded = (length + chunk - 1) / chunk * chunk;
        _keys = new float[length * heads * headSize];
        _gradKeys = new float[_isLsh ? _keys.Length : 0];
        _order = new int[_isLsh ? heads * options.Rounds * _padded : 0];
        _slots = new int[_order.Length];
        int most = _isLsh ? 2 * chunk * options.Rounds : length;
        _seen = [.. Enumerable.Range(0, heads).Select(_ => new int[most])];
        _scores = [.. Enumerable.Range(0, heads).Select(_ => new float[most])];
        _gradients = [.. Enumerable.Range(0, heads).Select(_ => new float[most])];
    }

    /// <summary>Writes the output [T,H,D] and the log-sum-exp of the scores [H,T].</summary>
    public void Forward(float[] q, float[] k, float[] v, float[] rotations, float[] output, float[] logSumExp)
    {
        if (_isLsh)
        {
            NormaliseKeys(q);
            Parallel.For(0, _heads, _parallel, head => Sort(head, q, rotations));
        }

        float[] keys = _isLsh ? _keys : k;
        Parallel.For(
            0,
            _heads,
            _parallel,
            head =>
            {
                float[] scores = _scores[head];
                for (int t = 0; t < _length; t++)
                {
                    int count = See(head, t);
                    Span<float> sum = output.AsSpan(Row(t, head), _size);
                    logSumExp[(head * _length) + t] = Score(head, count, q.AsSpan(Row(t, head), _size), keys);
                    if (count == 0)
                    {
                        v.AsSpan(Row(t, head), _size).CopyTo(sum); // a token that sees no other one attends to itself
                        continue;
                    }

                    Span<float> weights = scores.AsSpan(0, count);
                    TensorPrimitives.Subtract(weights, logSumExp[(head * _length) + t], weights);
                    TensorPrimitives.Exp(weights, weights);
                    sum.Clear();
                    for (int i = 0; i < count; i++)
                    {
                        TensorPrimitives.MultiplyAdd(v.AsSpan(Row(_seen[head][i], head), _size), weights[i], sum, sum);
                    }
                }
            }
        );
    }

    /// <summary>Writes the gradients; needs what <see cref="Forward"/> wrote, and its sorted order.</summary>
    public void Backward(
        float[] q, float[] k, float[] v, float[] output, float[] logSumExp, float[] gradOut,
        float[] gradQ, float[] gradK, float[] gradV)
    {
        float[] keys = _isLsh ? _keys : k;
        float[] gradKeys = _isLsh ? _gradKeys : gradK;
        Array.Clear(gradQ);
        Array.Clear(gradKeys);
        Array.Clear(gradV);
        Parallel.For(
            0,
            _heads,
            _parallel,
            head =>
            {
                float[] scores = _scores[head];
                for (int t = 0; t < _length; t++)
                {
                    int row = Row(t, head);
                    ReadOnlySpan<float> grad = gradOut.AsSpan(row, _size);
                    int count = See(head, t);
                    if (count == 0)
                    {
                        TensorPrimitives.Add(gradV.AsSpan(row, _size), grad, gradV.AsSpan(row, _size));
                        continue;
                    }

                    ReadOnlySpan<float> query = q.AsSpan(row, _size);
                    Score(head, count, query, keys);
                    Span<float> weights = scores.AsSpan(0, count);
                    TensorPrimitives.Subtract(weights, logSumExp[(head * _length) + t], weights);
                    TensorPrimitives.Exp(weights, weights);
                    Span<float> gradScores = _gradients[head].AsSpan(0, count);
                    for (int i = 0; i < count; i++)
                    {
                        int key = Row(_seen[head][i], head);
                        Span<float> gradValue = gradV.AsSpan(key, _size);
                        TensorPrimitives.MultiplyAdd(grad, weights[i], gradValue, gradValue);
                        gradScores[i] = TensorPrimitives.Dot(grad, v.AsSpan(key, _size));
                    }

                    TensorPrimitives.Subtract(
                        gradScores, TensorPrimitives.Dot(grad, output.AsSpan(row, _size)), gradScores);
                    TensorPrimitives.Multiply(gradScores, weights, gradScores);
                    TensorPrimitives.Multiply(gradScores, _scale, gradScores);
                    Span<float> gradQuery = gradQ.AsSpan(row, _size);
                    for (int i = 0; i < count; i++)
                    {
                        int key = Row(_seen[head][i], head);
                        TensorPrimitives.MultiplyAdd(keys.AsSpan(key, _size), gradScores[i], gradQuery, gradQuery);
                        Span<float> gradKey = gradKeys.AsSpan(key, _size);
                        TensorPrimitives.MultiplyAdd(query, gradScores[i], gradKey, gradKey);
                    }
                }
            }
        );
        if (_isLsh)
        {
            KeyNormBackward(q, gradQ);
        }
    }

    private int Row(int t, int head) => ((t * _heads) + head) * _size;

    /// <summary>Scores of a query with the keys it sees; returns their log-sum-exp.</summary>
    private float Score(int head, int count, ReadOnlySpan<float> query, float[] keys)
    {
        if (count == 0)
        {
            return float.NegativeInfinity;
        }

        Span<float> scores = _scores[head].AsSpan(0, count);
        for (int i = 0; i < count; i++)
        {
            scores[i] = TensorPrimitives.Dot(query, keys.AsSpan(Row(_seen[head][i], head), _size));
        }

        TensorPrimitives.Multiply(scores, _scale, scores);
        float largest = TensorPrimitives.Max(scores);
        float sum = 0;
        foreach (float score in scores)
        {
            sum += MathF.Exp(score - largest);
        }

        return largest + MathF.Log(sum);
    }

    /// <summary>Lists the keys of a query, once for each time it meets them.</summary>
    private int See(int head, int t)
    {
        int[] seen = _seen[head];
        int count = 0;
        if (!_isLsh)
        {
            int end = _options.Causal ? t + 1 : _length;
            while (count < end)
            {
                seen[count] = count;
                count++;
            }

            return count;
        }

        int chunk = (int)_options.ChunkLength;
        int chunks = _options.Rounds * (_padded / chunk); // one ring over all rounds
        int first = head * _options.Rounds * _padded;
        for (int round = 0; round < _options.Rounds; round++)
        {
            int own = ((round * _padded) + _slots[first + (round * _padded) + t]) / chunk;
            for (int i = 0; i < 2; i++)
            {
                int at = (own + chunks - i) % chunks;
                foreach (int key in _order.AsSpan(first + (at * chunk), chunk))
                {
                    if (key < _length && key != t && !(_options.Causal && key > t))
                    {
                        seen[count++] = key;
                    }
                }
            }
        }

        return count;
    }

    /// <summary>Hashes and sorts the positions of a head: by bucket, then by position; padding comes last.</summary>
    private void Sort(int head, float[] q, float[] rotations)
    {
        int[] factors = _options.Factors.ToArray();
        int columns = (int)_options.Factors.RotationColumns;
        int rounds = _options.Rounds;
        var rotated = new float[rounds * columns];
        var buckets = new int[rounds * _length];
        for (int t = 0; t < _length; t++)
        {
            Array.Clear(rotated);
            for (int d = 0; d < _size; d++)
            {
                ReadOnlySpan<float> rotation = rotations.AsSpan(
                    ((head * _size) + d) * rounds * columns, rounds * columns);
                TensorPrimitives.MultiplyAdd(rotation, q[Row(t, head) + d], rotated, rotated);
            }

            for (int round = 0; round < rounds; round++)
            {
                int column = round * columns;
                int digit = 1;
                foreach (int factor in factors)
                {
                    ReadOnlySpan<float> part = rotated.AsSpan(column, factor / 2);
                    int high = TensorPrimitives.IndexOfMax(part);
                    int low = TensorPrimitives.IndexOfMin(part);
                    buckets[(round * _length) + t] += digit * (part[high] >= -part[low] ? high : (factor / 2) + low);
                    digit *= factor;
                    column += factor / 2;
                }
            }
        }

        var starts = new int[_options.Factors.Buckets + 1];
        for (int round = 0; round < rounds; round++)
        {
            ReadOnlySpan<int> bucket = buckets.AsSpan(round * _length, _length);
            Span<int> order = _order.AsSpan(((head * rounds) + round) * _padded, _padded);
            Span<int> slots = _slots.AsSpan(((head * rounds) + round) * _padded, _padded);
            Array.Clear(starts);
            foreach (int b in bucket)
            {
                starts[b + 1]++;
            }

            for (int b = 1; b < starts.Length; b++)
            {
                starts[b] += starts[b - 1];
            }

            for (int t = 0; t < _padded; t++)
            {
                int slot = t < _length ? starts[bucket[t]]++ : t;
                order[slot] = t;
                slots[t] = slot;
            }
        }
    }

    private void NormaliseKeys(float[] q) =>
        Parallel.For(
            0,
            _length * _heads,
            _parallel,
            row =>
            {
                ReadOnlySpan<float> x = q.AsSpan(row * _size, _size);
                TensorPrimitives.Divide(x, Norm(x), _keys.AsSpan(row * _size, _size));
            }
        );

    /// <summary>Adds the gradients of the normalised keys to those of the queries they were made of.</summary>
    private void KeyNormBackward(float[] q, float[] gradQ) =>
        Parallel.For(
            0,
            _length * _heads,
            _parallel,
            row =>
            {
                ReadOnlySpan<float> x = q.AsSpan(row * _size, _size);
                ReadOnlySpan<float> key = _keys.AsSpan(row * _size, _size);
                Span<float> grad = _gradKeys.AsSpan(row * _size, _size);
                Span<float> sum = gradQ.AsSpan(row * _size, _size);
                float mean = TensorPrimitives.Dot(key, grad) / _size;
                TensorPrimitives.MultiplyAdd(key, -mean, grad, grad);
                TensorPrimitives.MultiplyAdd(grad, 1 / Norm(x), sum, sum);
            }
        );

    private float Norm(ReadOnlySpan<float> x) => MathF.Sqrt((TensorPrimitives.SumOfSquares(x) / _size) + Epsilon);
}
