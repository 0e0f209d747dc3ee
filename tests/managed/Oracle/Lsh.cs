namespace ReformerNative.Oracle;

/// <summary>Which existing implementation's automatic bucket count to follow.</summary>
public enum BucketRule
{
    Trax,
    HuggingFace,
    Lucidrains,
}

/// <summary>Hashing and sorting.</summary>
public static class Lsh
{
    /// <summary>
    /// Buckets [B,H,R,T] of queries [B,T,H,D] by rotations [S,D,R,sum(factors)/2]; S is 1, H or B*H. With a pad bucket,
    /// masked positions have bucket prod(factors).
    /// </summary>
    public static int[] Hash(
        AttentionOptions options, AttentionShape shape, double[] q, bool[]? mask,
        double[] rotations) => HashWithMargin(options, shape, q, mask, rotations).Buckets;

    /// <summary>
    /// The same with, per decision [B,H,R,T], how far the winner is ahead of the second: a float32 result may differ
    /// where that is within rounding. Infinite for masked positions in the pad bucket.
    /// </summary>
    public static (int[] Buckets, double[] Margins) HashWithMargin(
        AttentionOptions options, AttentionShape shape, double[] q, bool[]? mask, double[] rotations)
    {
        var (rounds, factors) = (options.Rounds, options.Factors);
        var columns = factors.Sum() / 2;
        var scopes = rotations.Length / (shape.HeadSize * rounds * columns);
        var buckets = new int[shape.Batch * shape.Heads * rounds * shape.Tokens];
        var margins = new double[buckets.Length];
        for (var index = 0; index < buckets.Length; index++)
        {
            var t = index % shape.Tokens;
            var r = index / shape.Tokens % rounds;
            var row = index / shape.Tokens / rounds; // b * H + h
            var (b, h) = (row / shape.Heads, row % shape.Heads);
            margins[index] = double.PositiveInfinity;
            if (options.PadBucket && mask is not null && !mask[b * shape.Tokens + t])
            {
                buckets[index] = factors.Aggregate(1, (a, f) => a * f);
                continue;
            }

            var scope = scopes == 1 ? 0 : scopes == shape.Heads ? h : row;
            var (firstColumn, digit) = (0, 1);
            foreach (var factor in factors)
            {
                var scores = new double[factor];
                for (var c = 0; c < factor / 2; c++)
                {
                    var sum = 0.0;
                    for (var d = 0; d < shape.HeadSize; d++)
                    {
                        sum +=
                            q[shape.Offset(b, t, h) + d]
                            * rotations[((scope * shape.HeadSize + d) * rounds + r) * columns + firstColumn + c];
                    }

                    scores[c] = sum;
                    scores[factor / 2 + c] = -sum;
                }

                var best = Array.IndexOf(scores, scores.Max());
                margins[index] = Math.Min(margins[index], scores[best] - scores.Where((_, i) => i != best).Max());
                buckets[index] += digit * best;
                digit *= factor;
                firstColumn += factor / 2;
            }
        }

        return (buckets, margins);
    }

    /// <summary>
    /// Position at each slot, [B,H,R,padded]: by bucket, then by position. Positions from T on are imagined padding and
    /// come last.
    /// </summary>
    public static int[] Sort(AttentionOptions options, AttentionShape shape, int[] buckets)
    {
        var padded = options.Padded(shape.Tokens);
        return
        [
            .. Enumerable
                .Range(0, shape.Batch * shape.Heads * options.Rounds)
                .SelectMany(row =>
                    Enumerable
                        .Range(0, padded)
                        .OrderBy(t => t < shape.Tokens ? buckets[row * shape.Tokens + t] : int.MaxValue)
                        .ThenBy(t => t)
                ),
        ];
    }

    /// <summary>The automatic bucket counts of the existing implementations, as factors.</summary>
    public static int[] AutomaticBuckets(BucketRule rule, long length, long chunkLength, long maxPositions)
    {
        var chunks = length / chunkLength;
        switch (rule)
        {
            case BucketRule.Trax:
                var n = 2 * Math.Max(1, chunks);
                if (n <= 128)
                {
                    return [(int)n];
                }

                var d = 1L;
                while (d * d < n)
                {
                    d *= 2;
                }

                return [(int)d, (int)(2 * (n / (2 * d)))];
            case BucketRule.HuggingFace:
                var power = 0;
                while (2L << power <= 2 * chunks)
                {
                    power++;
                }

                var limit = 2 * Math.Max((long)Math.Floor(Math.Sqrt(maxPositions / chunkLength)), chunkLength);
                return 1L << power > limit ? [1 << (power / 2), 1 << (power - power / 2)] : [1 << power];
            default:
                return [(int)chunks];
        }
    }
}
