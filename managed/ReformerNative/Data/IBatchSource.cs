namespace ReformerNative.Data;

/// <summary>Which part of a data set.</summary>
public enum DataSplit
{
    /// <summary>For training.</summary>
    Train,

    /// <summary>Never trained on; for measuring.</summary>
    HeldOut,
}

/// <summary>
/// Makes batches. A batch is a pure function of (split, seed, index) and of the shape asked for, so the order of the
/// data survives an interruption without being stored.
/// </summary>
public interface IBatchSource
{
    /// <summary>
    /// One line that says what the data is, equal for equal data. It is written into checkpoints, and a run refuses to
    /// go on with another.
    /// </summary>
    string Identity { get; }

    /// <summary>All ids are below this.</summary>
    int VocabularySize { get; }

    /// <summary>Fills ids, labels and, if it has padding, the mask.</summary>
    /// <param name="batch">The batch to fill; its shape is what is wanted.</param>
    /// <param name="split">Which part of the data.</param>
    /// <param name="seed">The run's seed.</param>
    /// <param name="index">Number of the batch, from 0.</param>
    /// <exception cref="ArgumentException">The data cannot give this shape (too little text, a length the task does not
    /// have).</exception>
    void Fill(TokenBatch batch, DataSplit split, ulong seed, long index);
}
