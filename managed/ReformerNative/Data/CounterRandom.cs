namespace ReformerNative.Data;

/// <summary>
/// Random integers that are a pure function of (seed, step, layer, site, index): Philox4x32-10 (Salmon et al. 2011)
/// with the run's seed as key. It has no state, so a resumed run draws what an uninterrupted one would have drawn.
/// </summary>
internal static class CounterRandom
{
    /// <summary>Site of the data order; the native library uses the others.</summary>
    public const uint DataSite = 11;

    /// <summary>Ten rounds of Philox on one counter.</summary>
    public static (uint A, uint B, uint C, uint D) Philox(uint c0, uint c1, uint c2, uint c3, ulong key)
    {
        uint k0 = (uint)key;
        uint k1 = (uint)(key >> 32);
        for (int round = 0; round < 10; round++)
        {
            ulong product0 = 0xD2511F53UL * c0;
            ulong product1 = 0xCD9E8D57UL * c2;
            (c0, c1, c2, c3) = (
                (uint)(product1 >> 32) ^ c1 ^ k0, (uint)product1, (uint)(product0 >> 32) ^ c3 ^ k1, (uint)product0);
            k0 += 0x9E3779B9;
            k1 += 0xBB67AE85;
        }

        return (c0, c1, c2, c3);
    }

    /// <summary>
    /// A 64-bit word for element <paramref name="index"/> of stream (<paramref name="stream"/>,
    /// <paramref name="step"/>).
    /// </summary>
    public static ulong Word(ulong seed, uint stream, ulong step, uint index)
    {
        // Counter: element, step (two words), stream and site; the key is the seed.
        (uint a, uint b, _, _) = Philox(index, (uint)step, (uint)(step >> 32), (stream << 8) | DataSite, seed);
        return ((ulong)a << 32) | b;
    }

    /// <summary>A number of 0 .. count-1. The bias of the multiplication is below count / 2^64.</summary>
    public static long Below(long count, ulong seed, uint stream, ulong step, uint index) =>
        (long)Math.BigMul(Word(seed, stream, step, index), (ulong)count, out _);
}
