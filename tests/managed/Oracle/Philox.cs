namespace ReformerNative.Oracle;

/// <summary>Places of a model that draw random numbers; the values of RFN_SITE_* in the C header.</summary>
public enum Site
{
    AttentionProbabilities = 1,
    AttentionOutput = 2,
    FeedForwardHidden = 3,
    FeedForwardOutput = 4,
    WordEmbedding = 5,
    PositionEmbedding = 6,
    FinalNorm = 7,
    Rotations = 8,
    Parameters = 9,
    Sampling = 10,
    Data = 11,
}

/// <summary>
/// What keys a stream of random numbers, besides the site. Embedding, final norm and sampling use layer -1.
/// </summary>
public sealed record Randomness(ulong Seed, ulong Step, int Layer)
{
    /// <summary>Seed 0, step 0, no layer.</summary>
    public static Randomness None { get; } = new(0, 0, -1);
}

/// <summary>
/// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): counter-based random numbers, so that every element's draw
/// stands alone.
/// </summary>
public static class Philox
{
    /// <summary>The four words of a counter block.</summary>
    public static uint[] Block(uint counter0, uint counter1, uint counter2, uint counter3, uint key0, uint key1)
    {
        for (var round = 0; round < 10; round++)
        {
            var product0 = 0xD2511F53UL * counter0;
            var product1 = 0xCD9E8D57UL * counter2;
            counter0 = (uint)(product1 >> 32) ^ counter1 ^ key0;
            counter2 = (uint)(product0 >> 32) ^ counter3 ^ key1;
            counter1 = (uint)product1;
            counter3 = (uint)product0;
            key0 = unchecked(key0 + 0x9E3779B9U);
            key1 = unchecked(key1 + 0xBB67AE85U);
        }

        return [counter0, counter1, counter2, counter3];
    }

    /// <summary>The four words of elements 4 quad .. 4 quad + 3 of a site.</summary>
    public static uint[] Words(Randomness randomness, Site site, long quad)
    {
        var place = unchecked((uint)(randomness.Layer + 1) * 256U + (uint)site);
        return Block(
            unchecked((uint)quad), unchecked((uint)(quad >> 32)), place, unchecked((uint)randomness.Step),
            unchecked((uint)randomness.Seed), (uint)(randomness.Seed >> 32));
    }

    /// <summary>A number of [0, 1) with 24 bits.</summary>
    public static double Uniform(Randomness randomness, Site site, long element) =>
        (Words(randomness, site, element / 4)[element % 4] >> 8) * Math.Pow(2, -24);

    /// <summary>0 for a dropped element, else 1 / (1 - p) as float32 has it.</summary>
    public static double DropoutMultiplier(Randomness randomness, Site site, long element, float p) =>
        p == 0 ? 1 : Uniform(randomness, site, element) < p ? 0 : 1f / (1f - p);

    /// <summary>
    /// Multiplies each value by its dropout multiplier; the element index is the flat index, starting at
    /// <paramref name="first"/>.
    /// </summary>
    public static double[] Dropout(double[] values, Randomness randomness, Site site, float p, long first = 0) =>
        [.. values.Select((value, i) => value * DropoutMultiplier(randomness, site, first + i, p))];

    /// <summary>A standard normal number: Box-Muller on two neighbouring words.</summary>
    public static double Normal(Randomness randomness, Site site, long element)
    {
        var words = Words(randomness, site, element / 4);
        var pair = (int)(element % 4) & ~1;
        var u1 = ((words[pair] >> 8) + 1) * Math.Pow(2, -24);
        var u2 = (words[pair + 1] >> 8) * Math.Pow(2, -24);
        var radius = Math.Sqrt(-2 * Math.Log(u1));
        return radius * (element % 2 == 0 ? Math.Cos(2 * Math.PI * u2) : Math.Sin(2 * Math.PI * u2));
    }
}
