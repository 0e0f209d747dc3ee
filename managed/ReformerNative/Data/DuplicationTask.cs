namespace ReformerNative.Data;

/// <summary>
/// The duplication task of the Reformer paper (its section 5): a sequence 0 w 0 w, w of symbols 1 .. symbols drawn
/// uniformly. The labels are the second w, all other positions are ignored, so loss and accuracy speak of what can be
/// known. Both splits are endless and differ in their random stream.
/// </summary>
public sealed class DuplicationTask : IBatchSource
{
    private readonly int _symbols;

    /// <summary>Creates the task.</summary>
    /// <param name="symbols">How many symbols w is made of; the paper has 127.</param>
    public DuplicationTask(int symbols = 127)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(symbols, 1);
        _symbols = symbols;
    }

    /// <inheritdoc/>
    public string Identity => $"duplication, {_symbols} symbols";

    /// <summary>The symbols and 0.</summary>
    public int VocabularySize => _symbols + 1;

    /// <inheritdoc/>
    /// <exception cref="ArgumentException">The length is odd or below 4.</exception>
    public void Fill(TokenBatch batch, DataSplit split, ulong seed, long index)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(index);
        if (batch.Length < 4 || batch.Length % 2 != 0)
        {
            throw new ArgumentException(
                $"length: expected an even number from 4 up for the duplication task, found {batch.Length}",
                nameof(batch));
        }

        int half = batch.Length / 2;
        for (int b = 0; b < batch.BatchSize; b++)
        {
            Span<int> ids = batch.Ids.Slice(b * batch.Length, batch.Length);
            Span<int> labels = batch.Labels.Slice(b * batch.Length, batch.Length);
            ids[0] = 0;
            for (int i = 1; i < half; i++)
            {
                ids[i] =
                    1
                    + (int)
                        CounterRandom.Below(_symbols, seed, (uint)split, (ulong)index, checked((uint)((b * half) + i)));
            }

            ids[..half].CopyTo(ids[half..]);
            labels.Fill(TokenBatch.IgnoredLabel);
            ids[(half + 1)..].CopyTo(labels[(half + 1)..]);
        }

        batch.HasMask = false;
    }
}
