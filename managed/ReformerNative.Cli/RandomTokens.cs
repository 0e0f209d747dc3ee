using ReformerNative.Data;

namespace ReformerNative.Cli;

/// <summary>Uniformly random ids, for measuring time and memory.</summary>
internal sealed class RandomTokens(int vocabulary) : IBatchSource
{
    public string Identity => Output.Text($"random ids below {vocabulary}");

    public int VocabularySize => vocabulary;

    public void Fill(TokenBatch batch, DataSplit split, ulong seed, long index)
    {
        const ulong odd = 0x9E3779B97F4A7C15;
        ulong state = (seed * odd) ^ ((ulong)index << 1) ^ (ulong)split;
        foreach (ref int id in batch.Ids)
        {
            state += odd;
            ulong mixed = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9; // SplitMix64 (Steele, Lea and Flood 2014)
            mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB;
            id = (int)Math.BigMul(mixed ^ (mixed >> 31), (ulong)vocabulary, out _);
        }

        batch.Ids.CopyTo(batch.Labels);
        batch.HasMask = false;
    }
}
