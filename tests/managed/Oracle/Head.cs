namespace ReformerNative.Oracle;

/// <summary>How the two streams become one.</summary>
public enum Combine
{
    Concatenate,
    Mean,
}

/// <summary>Gradients of the final norm.</summary>
public sealed record FinalNormGradients(double[] Stream1, double[] Stream2, double[] Weight, double[] Bias);

/// <summary>y = dropout(LayerNorm(combine(stream1, stream2))) for streams [N, width].</summary>
public static class FinalNorm
{
    public static double[] Forward(
        Combine combine, double[] stream1, double[] stream2, int width, double[] weight, double[] bias, double epsilon,
        float dropout, Randomness randomness) =>
        Philox.Dropout(
            LayerNorm.Forward(Join(combine, stream1, stream2, width), weight, bias, epsilon), randomness,
            Site.FinalNorm, dropout);

    public static FinalNormGradients Backward(
        Combine combine, double[] stream1, double[] stream2, int width, double[] weight, double epsilon, float dropout,
        Randomness randomness, double[] gradY)
    {
        var dropped = Philox.Dropout(gradY, randomness, Site.FinalNorm, dropout);
        var norm = LayerNorm.Backward(Join(combine, stream1, stream2, width), weight, epsilon, dropped);
        if (combine == Combine.Mean)
        {
            double[] half = [.. norm.X.Select(g => g / 2)];
            return new(half, [.. half], norm.Weight, norm.Bias);
        }

        double[] first = [.. norm.X.Where((_, i) => i % (2 * width) < width)],
            second = [.. norm.X.Where((_, i) => i % (2 * width) >= width)];
        return new(first, second, norm.Weight, norm.Bias);
    }

    private static double[] Join(Combine combine, double[] stream1, double[] stream2, int width)
    {
        if (combine == Combine.Mean)
        {
            return [.. stream1.Zip(stream2, (a, b) => (a + b) / 2)];
        }

        var joined = new double[2 * stream1.Length];
        for (var i = 0; i < stream1.Length; i++)
        {
            var at = i / width * 2 * width + i % width;
            joined[at] = stream1[i];
            joined[at + width] = stream2[i];
        }

        return joined;
    }
}

/// <summary>
/// Statistics [3] (sum of losses, rows counted, rows right) and the gradients of scale * sum / normalizer.
/// </summary>
public sealed record HeadLossResult(
    double[] Statistics, double[] Logits, double[] GradX, double[] GradWeight, double[]? GradBias);

/// <summary>Linear head [V,K] and cross entropy with label smoothing.</summary>
public static class HeadLoss
{
    /// <summary>A normalizer of 0 is the number of rows that count.</summary>
    public static HeadLossResult Run(
        double[] x, double[] weight, double[]? bias, int inputs, int[] labels, int ignoreIndex, double smoothing = 0,
        double lossScale = 1, double normalizer = 0)
    {
        var vocabulary = weight.Length / inputs;
        var logits = Linear.Forward(x, weight, bias, inputs);
        var statistics = new double[3];
        var gradLogits = new double[logits.Length];
        statistics[1] = labels.Count(label => label != ignoreIndex);
        var divisor = normalizer == 0 ? statistics[1] : normalizer;
        for (var n = 0; n < labels.Length; n++)
        {
            if (labels[n] == ignoreIndex)
            {
                continue;
            }

            var row = logits.AsSpan(n * vocabulary, vocabulary).ToArray();
            var logSumExp = Attention.LogSumExp(row);
            for (var v = 0; v < vocabulary; v++)
            {
                var target = (v == labels[n] ? 1 - smoothing : 0) + smoothing / vocabulary;
                statistics[0] -= target * (row[v] - logSumExp);
                gradLogits[n * vocabulary + v] = lossScale / divisor * (Math.Exp(row[v] - logSumExp) - target);
            }

            statistics[2] += Array.IndexOf(row, row.Max()) == labels[n] ? 1 : 0;
        }

        var gradients = Linear.Backward(x, weight, bias, inputs, gradLogits);
        return new(statistics, logits, gradients.X, gradients.Weight, gradients.Bias);
    }
}
