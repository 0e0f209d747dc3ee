using ReformerNative.Data;

namespace ReformerNative.Cli;

/// <summary>Uniformly random ids, for measuring time and memory.</summary>
internal sealed class RandomTokens(int vocabulary) : IBatchSource
{
    public string Identity => Output.Text($"random ids below {vocabulary}");

    public int VocabularySize => vocabulary;

    public void Fill(TokenBatch batch, DataSplit split, ulong seed, long index)
    {
#pragma warning disable CA5394 // nothing is kept secret
        var random = new Random(HashCode.Combine(seed, split, index));
        foreach (ref int id in batch.Ids)
        {
            id = random.Next(vocabulary);
        }
#pragma warning restore CA5394

        batch.Ids.CopyTo(batch.Labels);
        batch.HasMask = false;
    }
}
