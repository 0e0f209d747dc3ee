namespace ReformerNative.Oracle;

/// <summary>The distribution that sampling draws from.</summary>
public static class Sampling
{
    /// <summary>
    /// Probabilities of one row's ids: softmax(logits / temperature) of the top_k largest logits, renormalised, then of
    /// the smallest set of most probable ids that holds at least top_p, renormalised. Of equals the lower id counts as
    /// larger. Temperature 0 is the first largest.
    /// </summary>
    public static double[] Distribution(double[] logits, double temperature, int topK = 0, double topP = 1)
    {
        var order = Enumerable.Range(0, logits.Length).OrderByDescending(i => logits[i]).ThenBy(i => i).ToArray();
        var probabilities = new double[logits.Length];
        if (temperature == 0)
        {
            probabilities[order[0]] = 1;
            return probabilities;
        }

        var kept = topK == 0 ? order : [.. order.Take(topK)];
        var logSumExp = Attention.LogSumExp(kept.Select(i => logits[i] / temperature));
        var sum = 0.0;
        foreach (var i in kept)
        {
            if (topP < 1 && sum >= topP)
            {
                break;
            }

            probabilities[i] = Math.Exp(logits[i] / temperature - logSumExp);
            sum += probabilities[i];
        }

        return [.. probabilities.Select(p => p / sum)];
    }
}
