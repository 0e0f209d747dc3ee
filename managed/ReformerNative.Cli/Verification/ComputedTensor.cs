using ReformerNative.Checkpoints;

namespace ReformerNative.Cli.Verification;

/// <summary>A tensor that this library computed, to be compared with one of a file.</summary>
/// <param name="Shape">Lengths of its axes.</param>
/// <param name="Floats">Its values; empty when they are integers.</param>
/// <param name="Integers">Its values; empty when they are floats.</param>
/// <param name="TokenAxis">
/// The axis of tokens, along which the file's tensor may go on with padding that this library does not have; -1 when
/// there is none.
/// </param>
/// <param name="Mask">
/// [B, T], 0 for positions that take no part in the comparison, B being the first axis; null when all take part.
/// </param>
internal sealed record ComputedTensor(
    IReadOnlyList<long> Shape, ReadOnlyMemory<float> Floats, ReadOnlyMemory<int> Integers, int TokenAxis = -1,
    byte[]? Mask = null)
{
    public static ComputedTensor Of(
        ReadOnlyMemory<float> values, IReadOnlyList<long> shape, int tokenAxis = -1,
        byte[]? mask = null) => new(shape, values, default, tokenAxis, mask);

    public static ComputedTensor Of(ReadOnlyMemory<int> values, IReadOnlyList<long> shape, int tokenAxis = -1) =>
        new(shape, default, values, tokenAxis);

    public SafetensorsItem ToItem(string name) => Integers.IsEmpty
        ? SafetensorsItem.FromFloats(name, Shape, Floats)
        : SafetensorsItem.FromIntegers(name, Shape, Integers);

    /// <summary>
    /// Largest difference from a tensor of a file, relative to the file's largest magnitude over the positions
    /// compared. Null when the shapes do not fit; infinite when the file's tensor is zero and this one is not.
    /// </summary>
    public double? RelativeDifference(SafetensorsReader file, SafetensorsEntry entry)
    {
        double difference = 0;
        double magnitude = 0;
        bool fits = Compare(file, entry, (expected, found) =>
        {
            double apart = Math.Abs(expected - found);
            difference = apart > difference || double.IsNaN(apart) ? apart : difference;
            magnitude = Math.Max(magnitude, Math.Abs(expected));
        });
        return !fits ? null : difference == 0 ? 0 : difference / magnitude;
    }

    /// <summary>
    /// Distance from a tensor of a file over the file's norm, over the positions compared; of integers the share that
    /// differs. Null when the shapes do not fit.
    /// </summary>
    public double? RelativeDistance(SafetensorsReader file, SafetensorsEntry entry)
    {
        double difference = 0;
        double magnitude = 0;
        bool fits = Compare(file, entry, (expected, found) =>
        {
            difference += Integers.IsEmpty ? (expected - found) * (expected - found) : expected == found ? 0 : 1;
            magnitude += Integers.IsEmpty ? expected * expected : 1;
        });
        double squared = difference == 0 ? 0 : difference / magnitude;
        return !fits ? null : Integers.IsEmpty ? Math.Sqrt(squared) : squared;
    }

    public static long Product(IEnumerable<long> lengths) =>
        lengths.Aggregate(1L, (product, length) => checked(product * length));

    /// <summary>Hands over each pair of values that takes part; false when the shapes do not fit.</summary>
    private bool Compare(SafetensorsReader file, SafetensorsEntry entry, Action<double, double> take)
    {
        if (!Fits(entry.Shape))
        {
            return false;
        }

        double[] expected = Integers.IsEmpty
            ? Array.ConvertAll(file.ReadFloats(entry.Name), value => (double)value)
            : Array.ConvertAll(file.ReadIntegers(entry.Name), value => (double)value);
        long outer = TokenAxis < 0 ? 1 : Product(Shape.Take(TokenAxis));
        long tokens = TokenAxis < 0 ? 1 : Shape[TokenAxis];
        long expectedTokens = TokenAxis < 0 ? 1 : entry.Shape[TokenAxis];
        long inner = TokenAxis < 0 ? Product(Shape) : Product(Shape.Skip(TokenAxis + 1));
        long outerOfExample = Mask is null ? 1 : outer / Shape[0];
        for (long o = 0; o < outer; o++)
        {
            for (long t = 0; t < tokens; t++)
            {
                if (Mask is not null && Mask[((o / outerOfExample) * tokens) + t] == 0)
                {
                    continue;
                }

                long ours = ((o * tokens) + t) * inner;
                long theirs = ((o * expectedTokens) + t) * inner;
                for (long i = 0; i < inner; i++)
                {
                    take(expected[theirs + i], At(ours + i));
                }
            }
        }

        return true;
    }

    private double At(long index) => Integers.IsEmpty ? Floats.Span[(int)index] : Integers.Span[(int)index];

    private bool Fits(IReadOnlyList<long> shape)
    {
        if (shape.Count != Shape.Count)
        {
            return false;
        }

        for (int axis = 0; axis < shape.Count; axis++)
        {
            if (axis == TokenAxis ? shape[axis] < Shape[axis] : shape[axis] != Shape[axis])
            {
                return false;
            }
        }

        return true;
    }
}
