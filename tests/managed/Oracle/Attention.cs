namespace ReformerNative.Oracle;

/// <summary>What attends to what.</summary>
public enum AttentionKind
{
    /// <summary>Shared QK, hashed, sorted, chunked.</summary>
    Lsh,

    /// <summary>Chunks of the sequence itself and their neighbours.</summary>
    Local,

    /// <summary>Every allowed pair.</summary>
    Full,
}

/// <summary>Which keys an LSH query sees among the sorted slots of a round.</summary>
public enum LshWindow
{
    /// <summary>Everything in its chunk and the neighbour chunks.</summary>
    Slots,

    /// <summary>The same, of its own bucket only.</summary>
    SameBucket,

    /// <summary>The before * C slots ahead of it, of its own bucket only.</summary>
    Strict,
}

/// <summary>How a key is normalised.</summary>
public enum KeyNorm
{
    /// <summary>As it is.</summary>
    None,

    /// <summary>k / sqrt(mean(k^2) + 1e-6).</summary>
    Rms,

    /// <summary>k / max(|k|, 1e-12).</summary>
    L2,
}

/// <summary>
/// The options of rfn_attention_options. <see cref="LogitScale"/> 0 is 1 / sqrt(D); <see cref="PaddedLength"/> 0 is T
/// rounded up to a multiple of C.
/// </summary>
public sealed record AttentionOptions
{
    public AttentionKind Kind { get; init; }
    public bool SharedQk { get; init; }
    public bool Causal { get; init; }
    public LshWindow Window { get; init; }
    public bool Wrap { get; init; }
    public bool RepeatChunks { get; init; }
    public bool LogCount { get; init; }
    public KeyNorm KeyNorm { get; init; }
    public int Rounds { get; init; } = 1;
    public IReadOnlyList<int> Factors { get; init; } = [2];
    public bool PadBucket { get; init; }
    public int ChunksBefore { get; init; }
    public int ChunksAfter { get; init; }
    public double LogitScale { get; init; }
    public float Dropout { get; init; }
    public int ChunkLength { get; init; } = 1;
    public int PaddedLength { get; init; }

    /// <summary>Slots of a round: the tokens and the padding imagined behind them.</summary>
    public int Padded(int tokens) =>
        Kind == AttentionKind.Full ? tokens
        : PaddedLength != 0 ? PaddedLength
        : (tokens + ChunkLength - 1) / ChunkLength * ChunkLength;
}

/// <summary>Sizes of q, k, v and out: [Batch, Tokens, Heads, HeadSize], row-major.</summary>
public sealed record AttentionShape(int Batch, int Tokens, int Heads, int HeadSize)
{
    public int Size => Batch * Tokens * Heads * HeadSize;

    public int Offset(int b, int t, int h) => ((b * Tokens + t) * Heads + h) * HeadSize;
}

/// <summary>
/// Inputs of attention. Keys are null with shared QK. Mask [B,T], true = real, null = all real. Buckets [B,H,R,T] for
/// LSH.
/// </summary>
public sealed record AttentionInput(
    AttentionShape Shape, double[] Q, double[]? K, double[] V, bool[]? Mask, int[]? Buckets);

/// <summary>
/// Out [B,T,H,D] and LogSumExp [B,H,T], the log of the summed exponentials of all scores of a query (-inf without any).
/// </summary>
public sealed record AttentionResult(double[] Out, double[] LogSumExp);

/// <summary>The same for each round by itself: Out [R,B,T,H,D], LogSumExp [R,B,H,T].</summary>
public sealed record RoundsResult(double[] Out, double[] LogSumExp);

/// <summary>Gradients; K is null with shared QK.</summary>
public sealed record AttentionGradients(double[] Q, double[]? K, double[] V);

/// <summary>
/// Attention of every kind, query by query: list the keys that the query meets, take the softmax over the list, sum the
/// values. A key met in several rounds is in the list several times.
/// </summary>
public sealed class Attention
{
    /// <summary>
    /// Subtracted from the logit of a pair that a window shows by wrapping into another round although no round counts
    /// it: the existing implementation's guard against the log of 0.
    /// </summary>
    public static readonly double LogOfNoCount = Math.Log(1e-9);

    private readonly AttentionOptions _options;
    private readonly AttentionInput _input;
    private readonly Randomness _randomness;
    private readonly double[] _keys;
    private readonly double _scale;
    private readonly int _rounds;
    private readonly int _padded;
    private readonly int[] _sorted; // [B,H,R,padded]: position at each slot
    private readonly int[] _slots; // [B,H,R,padded]: slot of each position

    private Attention(AttentionOptions options, AttentionInput input, Randomness randomness)
    {
        var shape = input.Shape;
        _options = options;
        _input = input;
        _randomness = randomness;
        _scale = options.LogitScale == 0 ? 1 / Math.Sqrt(shape.HeadSize) : options.LogitScale;
        _keys = KeyNorms.Apply(options.SharedQk ? input.Q : input.K!, shape.HeadSize, options.KeyNorm);
        _rounds = options.Kind == AttentionKind.Lsh ? options.Rounds : 1;
        _padded = options.Padded(shape.Tokens);
        _sorted =
            options.Kind == AttentionKind.Lsh
                ? Lsh.Sort(options, shape, input.Buckets!)
                : [.. Enumerable.Range(0, shape.Batch * shape.Heads).SelectMany(_ => Enumerable.Range(0, _padded))];
        _slots = new int[_sorted.Length];
        for (var i = 0; i < _sorted.Length; i++)
        {
            _slots[i / _padded * _padded + _sorted[i]] = i % _padded;
        }
    }

    /// <summary>One meeting of a query with a key.</summary>
    private readonly record struct Meeting(int Round, int Key, double LogCount, long Element);

    /// <summary>Output over all rounds.</summary>
    public static AttentionResult Forward(AttentionOptions options, AttentionInput input, Randomness randomness)
    {
        var self = new Attention(options, input, randomness);
        var shape = input.Shape;
        var result = new AttentionResult(new double[shape.Size], new double[shape.Batch * shape.Heads * shape.Tokens]);
        self.ForEachQuery(
            (b, h, i, meetings) =>
                result.LogSumExp[(b * shape.Heads + h) * shape.Tokens + i] = self.ForwardQuery(
                    b, h, i, meetings, result.Out.AsSpan(shape.Offset(b, i, h)))
        );
        return result;
    }

    /// <summary>Gradients of a loss whose gradient with respect to the output is given, buckets held fixed.</summary>
    public static AttentionGradients Backward(
        AttentionOptions options, AttentionInput input, Randomness randomness, double[] gradOut)
    {
        var self = new Attention(options, input, randomness);
        var shape = input.Shape;
        double[] dQ = new double[shape.Size],
            dK = new double[shape.Size],
            dV = new double[shape.Size];
        self.ForEachQuery(
            (b, h, i, meetings) =>
                self.BackwardQuery(
                    b, h, i, meetings, gradOut.AsSpan(shape.Offset(b, i, h), shape.HeadSize), 0, dQ, dK, dV)
        );
        return self.Collect(dQ, dK, dV);
    }

    /// <summary>
    /// Each round by itself. A shared-QK query without any other key in a round has its own value there and log-sum-exp
    /// -inf.
    /// </summary>
    public static RoundsResult Attend(AttentionOptions options, AttentionInput input, Randomness randomness)
    {
        var self = new Attention(options, input, randomness);
        var shape = input.Shape;
        var logSumExpSize = shape.Batch * shape.Heads * shape.Tokens;
        var result = new RoundsResult(
            new double[options.Rounds * shape.Size], new double[options.Rounds * logSumExpSize]);
        self.ForEachQuery(
            (b, h, i, meetings) =>
            {
                for (var r = 0; r < options.Rounds; r++)
                {
                    var own = meetings.Where(m => m.Round == r).ToList();
                    result.LogSumExp[r * logSumExpSize + (b * shape.Heads + h) * shape.Tokens + i] = self.ForwardQuery(
                        b, h, i, own, result.Out.AsSpan(r * shape.Size + shape.Offset(b, i, h)));
                }
            }
        );
        return result;
    }

    /// <summary>Backward pass of <see cref="Attend"/>, given the gradients of both of its results.</summary>
    public static AttentionGradients AttendBackward(
        AttentionOptions options, AttentionInput input, Randomness randomness, double[] gradRoundOut,
        double[] gradRoundLogSumExp)
    {
        var self = new Attention(options, input, randomness);
        var shape = input.Shape;
        var logSumExpSize = shape.Batch * shape.Heads * shape.Tokens;
        double[] dQ = new double[shape.Size],
            dK = new double[shape.Size],
            dV = new double[shape.Size];
        self.ForEachQuery(
            (b, h, i, meetings) =>
            {
                for (var r = 0; r < options.Rounds; r++)
                {
                    var own = meetings.Where(m => m.Round == r).ToList();
                    self.BackwardQuery(
                        b, h, i, own, gradRoundOut.AsSpan(r * shape.Size + shape.Offset(b, i, h), shape.HeadSize),
                        gradRoundLogSumExp[r * logSumExpSize + (b * shape.Heads + h) * shape.Tokens + i], dQ, dK, dV);
                }
            }
        );
        return self.Collect(dQ, dK, dV);
    }

    /// <summary>
    /// Weights each round by exp(log_sum_exp_r - log_sum_exp). If no round has a key, every round holds the same
    /// output, and round 0's is taken.
    /// </summary>
    public static AttentionResult Combine(AttentionShape shape, int rounds, RoundsResult each)
    {
        var logSumExpSize = shape.Batch * shape.Heads * shape.Tokens;
        var result = new AttentionResult(new double[shape.Size], new double[logSumExpSize]);
        ForEachRow(
            shape,
            (logSumExpIndex, offset) =>
            {
                var logSumExp = LogSumExp(
                    Enumerable.Range(0, rounds).Select(r => each.LogSumExp[r * logSumExpSize + logSumExpIndex]));
                result.LogSumExp[logSumExpIndex] = logSumExp;
                for (var r = 0; r < rounds; r++)
                {
                    var weight = RoundWeight(each.LogSumExp[r * logSumExpSize + logSumExpIndex], logSumExp, r);
                    for (var d = 0; d < shape.HeadSize; d++)
                    {
                        result.Out[offset + d] += weight * each.Out[r * shape.Size + offset + d];
                    }
                }
            }
        );
        return result;
    }

    /// <summary>Gradients of <see cref="Combine"/> with respect to each round's output and log-sum-exp.</summary>
    public static RoundsResult CombineBackward(AttentionShape shape, int rounds, RoundsResult each, double[] gradOut)
    {
        var logSumExpSize = shape.Batch * shape.Heads * shape.Tokens;
        var result = new RoundsResult(new double[rounds * shape.Size], new double[rounds * logSumExpSize]);
        ForEachRow(
            shape,
            (logSumExpIndex, offset) =>
            {
                var logSumExp = LogSumExp(
                    Enumerable.Range(0, rounds).Select(r => each.LogSumExp[r * logSumExpSize + logSumExpIndex]));
                var weights = Enumerable
                    .Range(0, rounds)
                    .Select(r => RoundWeight(each.LogSumExp[r * logSumExpSize + logSumExpIndex], logSumExp, r))
                    .ToArray();
                var gradWeights = new double[rounds]; // dL/dw_r = dO . o_r
                for (var r = 0; r < rounds; r++)
                {
                    for (var d = 0; d < shape.HeadSize; d++)
                    {
                        result.Out[r * shape.Size + offset + d] = weights[r] * gradOut[offset + d];
                        gradWeights[r] += gradOut[offset + d] * each.Out[r * shape.Size + offset + d];
                    }
                }

                if (double.IsNegativeInfinity(logSumExp))
                {
                    return;
                }

                var mean = weights.Zip(gradWeights, (w, g) => w * g).Sum();
                for (var r = 0; r < rounds; r++)
                {
                    result.LogSumExp[r * logSumExpSize + logSumExpIndex] = weights[r] * (gradWeights[r] - mean);
                }
            }
        );
        return result;
    }

    /// <summary>Log of the sum of exponentials; -inf for nothing.</summary>
    public static double LogSumExp(IEnumerable<double> values)
    {
        var all = values.ToList();
        var largest = all.Count == 0 ? double.NegativeInfinity : all.Max();
        return double.IsNegativeInfinity(largest) ? largest : largest + Math.Log(all.Sum(x => Math.Exp(x - largest)));
    }

    private static double RoundWeight(double roundLogSumExp, double logSumExp, int round) =>
        double.IsNegativeInfinity(logSumExp) ? (round == 0 ? 1 : 0) : Math.Exp(roundLogSumExp - logSumExp);

    private static void ForEachRow(AttentionShape shape, Action<int, int> action)
    {
        for (var b = 0; b < shape.Batch; b++)
        {
            for (var h = 0; h < shape.Heads; h++)
            {
                for (var i = 0; i < shape.Tokens; i++)
                {
                    action((b * shape.Heads + h) * shape.Tokens + i, shape.Offset(b, i, h));
                }
            }
        }
    }

    private static int Modulo(int a, int n) => (a % n + n) % n;

    private static double Dot(ReadOnlySpan<double> a, ReadOnlySpan<double> b)
    {
        var sum = 0.0;
        for (var d = 0; d < a.Length; d++)
        {
            sum += a[d] * b[d];
        }

        return sum;
    }

    private void ForEachQuery(Action<int, int, int, List<Meeting>> action)
    {
        var shape = _input.Shape;
        for (var b = 0; b < shape.Batch; b++)
        {
            for (var h = 0; h < shape.Heads; h++)
            {
                for (var i = 0; i < shape.Tokens; i++)
                {
                    action(b, h, i, IsReal(b, i) ? Meetings(b, h, i) : []);
                }
            }
        }
    }

    private bool IsReal(int b, int t) =>
        t < _input.Shape.Tokens && (_input.Mask is null || _input.Mask[b * _input.Shape.Tokens + t]);

    private bool Allowed(int b, int i, int j) =>
        IsReal(b, j) && !(_options.Causal && j > i) && !(_options.SharedQk && j == i);

    private List<Meeting> Meetings(int b, int h, int i)
    {
        var shape = _input.Shape;
        var meetings = new List<Meeting>();
        if (_options.Kind == AttentionKind.Full)
        {
            for (var j = 0; j < shape.Tokens; j++)
            {
                if (Allowed(b, i, j))
                {
                    meetings.Add(new(0, j, 0, ((long)(b * shape.Heads + h) * shape.Tokens + i) * shape.Tokens + j));
                }
            }

            return meetings;
        }

        var c = _options.ChunkLength;
        var chunks = _padded / c;
        var width = c * (1 + _options.ChunksBefore + _options.ChunksAfter);
        for (var r = 0; r < _rounds; r++)
        {
            var slot = _slots[Row(b, h, r) + i];
            var seen = new HashSet<int>();
            for (var o = -_options.ChunksBefore; o <= _options.ChunksAfter; o++)
            {
                // Chunks of all rounds are numbered one after the other; only a wrapping window leaves its round.
                var chunk = r * chunks + slot / c + o;
                if (_options.Wrap && _options.Window != LshWindow.Strict)
                {
                    chunk = Modulo(chunk, _rounds * chunks);
                }
                else if (chunk < r * chunks || chunk >= (r + 1) * chunks)
                {
                    continue;
                }

                if (!seen.Add(chunk) && !_options.RepeatChunks)
                {
                    continue;
                }

                for (var u = 0; u < c; u++)
                {
                    var keyRound = chunk / chunks;
                    var keySlot = chunk % chunks * c + u;
                    var j = _sorted[Row(b, h, keyRound) + keySlot];
                    if (!Allowed(b, i, j)
                        || (_options.Window != LshWindow.Slots && !(keyRound == r && SameBucket(b, h, r, i, j)))
                        || (_options.Window == LshWindow.Strict && !IsJustAhead(keySlot, slot)))
                    {
                        continue;
                    }

                    // A strict window's elements count by position and distance, which later tokens do not change.
                    var element =
                        _options.Window == LshWindow.Strict
                            ? ((long)Row(b, h, r) + i) * width + slot - keySlot - 1
                            : ((long)Row(b, h, r) + slot) * width + (o + _options.ChunksBefore) * c + u;
                    meetings.Add(new(r, j, _options.LogCount ? LogCount(b, h, i, j) : 0, element));
                }
            }
        }

        return meetings;
    }

    private int Row(int b, int h, int r) => ((b * _input.Shape.Heads + h) * _rounds + r) * _padded;

    private bool SameBucket(int b, int h, int r, int i, int j)
    {
        if (_options.Kind != AttentionKind.Lsh)
        {
            return true;
        }

        var row = ((b * _input.Shape.Heads + h) * _rounds + r) * _input.Shape.Tokens;
        return _input.Buckets![row + i] == _input.Buckets[row + j];
    }

    private bool IsJustAhead(int keySlot, int slot) =>
        keySlot < slot && slot - keySlot <= _options.ChunksBefore * _options.ChunkLength;

    /// <summary>
    /// Log of the number of rounds in which the query's window of that round holds the key's slot of the same round.
    /// </summary>
    private double LogCount(int b, int h, int i, int j)
    {
        var count = Enumerable.Range(0, _rounds).Count(r => Counts(b, h, r, i, j));
        return count == 0 ? LogOfNoCount : Math.Log(count);
    }

    private bool Counts(int b, int h, int r, int i, int j)
    {
        int query = _slots[Row(b, h, r) + i],
            key = _slots[Row(b, h, r) + j];
        if (_options.Window != LshWindow.Slots && !SameBucket(b, h, r, i, j))
        {
            return false;
        }

        if (_options.Window == LshWindow.Strict)
        {
            return IsJustAhead(key, query);
        }

        var c = _options.ChunkLength;
        var allChunks = _rounds * (_padded / c);
        return Enumerable
            .Range(-_options.ChunksBefore, 1 + _options.ChunksBefore + _options.ChunksAfter)
            .Select(o => query / c + o - key / c)
            .Any(difference => difference == 0 || (_options.Wrap && difference % allChunks == 0));
    }

    private double[] Scores(int b, int h, int i, List<Meeting> meetings)
    {
        var shape = _input.Shape;
        return
        [
            .. meetings.Select(m =>
                _scale
                    * Dot(
                        _input.Q.AsSpan(shape.Offset(b, i, h), shape.HeadSize),
                        _keys.AsSpan(shape.Offset(b, m.Key, h), shape.HeadSize))
                - m.LogCount
            ),
        ];
    }

    private double Multiplier(Meeting m) =>
        Philox.DropoutMultiplier(_randomness, Site.AttentionProbabilities, m.Element, _options.Dropout);

    /// <summary>Adds the query's output to the row and returns its log-sum-exp.</summary>
    private double ForwardQuery(int b, int h, int i, List<Meeting> meetings, Span<double> output)
    {
        var shape = _input.Shape;
        if (meetings.Count == 0)
        {
            if (_options.SharedQk && IsReal(b, i))
            {
                _input.V.AsSpan(shape.Offset(b, i, h), shape.HeadSize).CopyTo(output);
            }

            return double.NegativeInfinity;
        }

        var scores = Scores(b, h, i, meetings);
        var logSumExp = LogSumExp(scores);
        for (var m = 0; m < scores.Length; m++)
        {
            var weight = Math.Exp(scores[m] - logSumExp) * Multiplier(meetings[m]);
            for (var d = 0; d < shape.HeadSize; d++)
            {
                output[d] += weight * _input.V[shape.Offset(b, meetings[m].Key, h) + d];
            }
        }

        return logSumExp;
    }

    /// <summary>
    /// Adds the gradients that flow through one query's softmax; dK is with respect to the normalised keys.
    /// </summary>
    private void BackwardQuery(
        int b, int h, int i, List<Meeting> meetings, ReadOnlySpan<double> gradOut, double gradLogSumExp, double[] dQ,
        double[] dK, double[] dV)
    {
        var shape = _input.Shape;
        var query = shape.Offset(b, i, h);
        if (meetings.Count == 0)
        {
            for (var d = 0; d < shape.HeadSize && _options.SharedQk && IsReal(b, i); d++)
            {
                dV[query + d] += gradOut[d];
            }

            return;
        }

        var scores = Scores(b, h, i, meetings);
        var logSumExp = LogSumExp(scores);
        var weights = new double[scores.Length];
        var gradWeights = new double[scores.Length];
        for (var m = 0; m < scores.Length; m++)
        {
            var key = shape.Offset(b, meetings[m].Key, h);
            var multiplier = Multiplier(meetings[m]);
            weights[m] = Math.Exp(scores[m] - logSumExp);
            gradWeights[m] = multiplier * Dot(gradOut, _input.V.AsSpan(key, shape.HeadSize));
            for (var d = 0; d < shape.HeadSize; d++)
            {
                dV[key + d] += weights[m] * multiplier * gradOut[d];
            }
        }

        var mean = weights.Zip(gradWeights, (w, g) => w * g).Sum();
        for (var m = 0; m < scores.Length; m++)
        {
            var key = shape.Offset(b, meetings[m].Key, h);
            var gradScore = _scale * weights[m] * (gradWeights[m] - mean + gradLogSumExp);
            for (var d = 0; d < shape.HeadSize; d++)
            {
                dQ[query + d] += gradScore * _keys[key + d];
                dK[key + d] += gradScore * _input.Q[query + d];
            }
        }
    }

    private AttentionGradients Collect(double[] dQ, double[] dK, double[] dV)
    {
        var source = _options.SharedQk ? _input.Q : _input.K!;
        var throughNorm = KeyNorms.Backward(source, dK, _input.Shape.HeadSize, _options.KeyNorm);
        return _options.SharedQk ? new([.. dQ.Zip(throughNorm, (a, b) => a + b)], null, dV) : new(dQ, throughNorm, dV);
    }
}
