namespace ReformerNative.Oracle;

/// <summary>Global norm and clipping.</summary>
public static class GlobalNorm
{
    /// <summary>
    /// The norm of all gradients and the factor that brings it down to maxNorm (0: no clipping); 0 if the norm is not
    /// finite.
    /// </summary>
    public static (double Norm, double Scale) Run(IEnumerable<double[]> gradients, double maxNorm)
    {
        var norm = Math.Sqrt(gradients.Sum(g => g.Sum(x => x * x)));
        return (norm, !double.IsFinite(norm) ? 0 : maxNorm > 0 && norm > maxNorm ? maxNorm / norm : 1);
    }
}

/// <summary>One AdamW update, in place. The first step is 1.</summary>
public sealed record AdamW(double LearningRate, double Beta1, double Beta2, double Epsilon, double WeightDecay)
{
    public void Update(
        long step, double[] parameter, double[] gradient, double[] moment1, double[] moment2, double scale = 1)
    {
        for (var i = 0; i < parameter.Length; i++)
        {
            var g = scale * gradient[i];
            moment1[i] = Beta1 * moment1[i] + (1 - Beta1) * g;
            moment2[i] = Beta2 * moment2[i] + (1 - Beta2) * g * g;
            var mean = moment1[i] / (1 - Math.Pow(Beta1, step));
            var square = moment2[i] / (1 - Math.Pow(Beta2, step));
            parameter[i] -= LearningRate * (mean / (Math.Sqrt(square) + Epsilon) + WeightDecay * parameter[i]);
        }
    }
}

/// <summary>One Adafactor update (Shazeer and Stern 2018, no momentum), in place. The first step is 1.</summary>
public sealed record Adafactor(
    double LearningRate, double DecayExponent, double ClipThreshold, double Epsilon1, double Epsilon2,
    double WeightDecay, bool ScaleParameter)
{
    /// <summary>
    /// A tensor of rank >= 2, columns = its last axis: running means over the other axis in row and column.
    /// </summary>
    public void Update(
        long step, double[] parameter, double[] gradient, double[] row, double[] column, double scale = 1)
    {
        var (rows, columns) = (row.Length, column.Length);
        var rho = Rho(step);
        var squares = gradient.Select(g => scale * g * scale * g + Epsilon1).ToArray();
        for (var r = 0; r < rows; r++)
        {
            row[r] = rho * row[r] + (1 - rho) * Enumerable.Range(0, columns).Average(c => squares[r * columns + c]);
        }

        for (var c = 0; c < columns; c++)
        {
            column[c] = rho * column[c] + (1 - rho) * Enumerable.Range(0, rows).Average(r => squares[r * columns + c]);
        }

        var mean = row.Average();
        Apply(
            parameter,
            [.. gradient.Select((g, i) => scale * g / Math.Sqrt(row[i / columns] * column[i % columns] / mean))]);
    }

    /// <summary>A tensor of rank 0 or 1: second moments as they are.</summary>
    public void Update(long step, double[] parameter, double[] gradient, double[] moment2, double scale = 1)
    {
        var rho = Rho(step);
        for (var i = 0; i < moment2.Length; i++)
        {
            moment2[i] = rho * moment2[i] + (1 - rho) * (scale * gradient[i] * scale * gradient[i] + Epsilon1);
        }

        Apply(parameter, [.. gradient.Select((g, i) => scale * g / Math.Sqrt(moment2[i]))]);
    }

    private static double Rms(double[] values) => Math.Sqrt(values.Average(v => v * v));

    private double Rho(long step) => 1 - Math.Pow(step, -DecayExponent);

    private void Apply(double[] parameter, double[] update)
    {
        var alpha = LearningRate * (ScaleParameter ? Math.Max(Epsilon2, Rms(parameter)) : 1);
        var divisor = Math.Max(1, Rms(update) / ClipThreshold);
        for (var i = 0; i < parameter.Length; i++)
        {
            parameter[i] -= alpha * update[i] / divisor + LearningRate * WeightDecay * parameter[i];
        }
    }
}
