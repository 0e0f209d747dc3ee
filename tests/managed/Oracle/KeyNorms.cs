namespace ReformerNative.Oracle;

/// <summary>Key normalisation over the last axis.</summary>
public static class KeyNorms
{
    /// <summary>Normalised rows of <paramref name="size"/> numbers.</summary>
    public static double[] Apply(double[] x, int size, KeyNorm norm)
    {
        var y = new double[x.Length];
        for (var row = 0; row < x.Length; row += size)
        {
            var factor = Factor(x.AsSpan(row, size), norm);
            for (var d = row; d < row + size; d++)
            {
                y[d] = factor * x[d];
            }
        }

        return y;
    }

    /// <summary>Gradient with respect to x, given that with respect to the normalised rows.</summary>
    public static double[] Backward(double[] x, double[] gradY, int size, KeyNorm norm)
    {
        var gradX = new double[x.Length];
        for (var row = 0; row < x.Length; row += size)
        {
            var factor = Factor(x.AsSpan(row, size), norm);
            var dot = 0.0;
            var square = 0.0;
            for (var d = row; d < row + size; d++)
            {
                dot += x[d] * gradY[d];
                square += x[d] * x[d];
            }

            // y = f x, df/dx = slope x: RMS f = (x.x/D + eps)^-1/2, L2 f = (x.x)^-1/2 above its floor.
            var slope = norm switch
            {
                KeyNorm.Rms => -factor * factor * factor / size,
                KeyNorm.L2 when Math.Sqrt(square) > 1e-12 => -factor * factor * factor,
                _ => 0,
            };
            for (var d = row; d < row + size; d++)
            {
                gradX[d] = factor * gradY[d] + slope * dot * x[d];
            }
        }

        return gradX;
    }

    private static double Factor(ReadOnlySpan<double> row, KeyNorm norm)
    {
        var square = 0.0;
        foreach (var value in row)
        {
            square += value * value;
        }

        return norm switch
        {
            KeyNorm.Rms => 1 / Math.Sqrt(square / row.Length + 1e-6),
            KeyNorm.L2 => 1 / Math.Max(Math.Sqrt(square), 1e-12),
            _ => 1,
        };
    }
}
