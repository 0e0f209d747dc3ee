using System.Security.Cryptography;
using System.Text;
using ReformerNative.Checkpoints;

namespace ReformerNative.Data;

/// <summary>
/// Byte-level text of files and folders. The last part of every file is held out; what remains of all files, in the
/// order of their paths, is one long stream with an end-of-text id between files. A training example is a stretch of it
/// that begins anywhere. The files must not be changed before it is disposed.
/// </summary>
public sealed class TextFiles : IBatchSource, IDisposable
{
    private readonly Stream[] _streams;
    private readonly byte[] _scratch = new byte[1 << 16];
    private readonly TextFile?[] _open = new TextFile?[64];
    private int _nextToClose;

    private TextFiles(List<TextFile> files, double heldOutFraction)
    {
        var heads = new List<Piece>();
        var tails = new List<Piece>();
        var binary = new List<string>();
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (TextFile file in files)
        {
            hash.AppendData(Encoding.UTF8.GetBytes(FormattableString.Invariant($"{file.Name}\0{file.Bytes}\n")));
            if (!Inspect(file, hash))
            {
                binary.Add(file.Path);
            }

            long tail = (long)Math.Ceiling(file.Bytes * heldOutFraction);
            heads.Add(new Piece(file, 0, file.Bytes - tail));
            tails.Add(new Piece(file, file.Bytes - tail, tail));
        }

        BinaryFiles = binary;
        FileCount = files.Count;
        _streams = [new Stream(heads), new Stream(tails)];
        ByteCount = files.Sum(file => file.Bytes);
        string contents = Convert.ToHexStringLower(hash.GetHashAndReset())[..16];
        string counts = FormattableString.Invariant($"bytes of {files.Count} files, {ByteCount} bytes");
        Identity = FormattableString.Invariant(
            $"{counts}, names and contents {contents}, held out {heldOutFraction}");
    }

    /// <inheritdoc/>
    public string Identity { get; }

    /// <inheritdoc/>
    public int VocabularySize => ByteVocabulary.Size;

    /// <summary>Number of files that are not empty.</summary>
    public int FileCount { get; }

    /// <summary>Bytes in all files, both splits.</summary>
    public long ByteCount { get; }

    /// <summary>
    /// Paths of the files that look like no text: with a zero byte among their first 8,000. Compressed and other binary
    /// files do, and UTF-16.
    /// </summary>
    public IReadOnlyList<string> BinaryFiles { get; }

    /// <summary>Opens files and folders.</summary>
    /// <param name="paths">
    /// Files, pipes (read whole), and folders of which all files that match the pattern are taken, with those of the
    /// folders in them. Links are followed, and a file that several paths lead to is taken once. Not taken from folders
    /// are names that begin with a point, links to nothing, and folders of runs and checkpoints.
    /// </param>
    /// <param name="pattern">File name pattern for folders, with * and ?.</param>
    /// <param name="heldOutFraction">Part of every file that is held out, 0 &lt;= f &lt; 1.</param>
    /// <returns>The text, which the caller disposes.</returns>
    /// <exception cref="FileNotFoundException">A path does not exist, or no text was found.</exception>
    /// <exception cref="ReformerFormatException">A file is a pointer of Git LFS, or its name is not UTF-8.</exception>
    public static TextFiles Open(IEnumerable<string> paths, string pattern = "*", double heldOutFraction = 0.05)
    {
        ArgumentNullException.ThrowIfNull(paths);
        if (!(heldOutFraction >= 0 && heldOutFraction < 1))
        {
            throw new ArgumentOutOfRangeException(
                nameof(heldOutFraction), heldOutFraction, "expected 0 <= held-out fraction < 1");
        }

        List<TextFile> files = FileSearch.Find(paths, pattern);
        files.RemoveAll(file => file.Bytes == 0);
        return files.Count > 0
            ? new TextFiles(files, heldOutFraction)
            : throw new FileNotFoundException(
                $"expected text in {string.Join(", ", paths)} (files matching {pattern}), found none");
    }

    /// <summary>Ids that a split has in all: its bytes and the ends of text between files.</summary>
    /// <param name="split">Which part.</param>
    /// <returns>The count.</returns>
    public long TokenCount(DataSplit split) => _streams[(int)split].Length;

    /// <inheritdoc/>
    /// <exception cref="ArgumentException">The split has fewer ids than one example.</exception>
    /// <exception cref="ReformerFormatException">A file became shorter.</exception>
    public void Fill(TokenBatch batch, DataSplit split, ulong seed, long index)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(index);
        long starts = TokenCount(split) - batch.Length + 1;
        if (starts < 1)
        {
            throw new ArgumentException(
                $"length: expected at most the {TokenCount(split)} ids of the {split} text, found {batch.Length}",
                nameof(batch));
        }

        for (int b = 0; b < batch.BatchSize; b++)
        {
            long start = CounterRandom.Below(starts, seed, (uint)split, (ulong)index, (uint)b);
            Read(split, start, batch.Ids.Slice(b * batch.Length, batch.Length));
        }

        batch.Ids.CopyTo(batch.Labels);
        batch.HasMask = false;
    }

    /// <summary>Reads ids at a place.</summary>
    /// <param name="split">Which part.</param>
    /// <param name="start">First id.</param>
    /// <param name="ids">Filled whole.</param>
    /// <exception cref="ReformerFormatException">A file became shorter.</exception>
    public void Read(DataSplit split, long start, Span<int> ids)
    {
        Stream stream = _streams[(int)split];
        ArgumentOutOfRangeException.ThrowIfNegative(start);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(start, stream.Length - ids.Length);
        for (int piece = stream.PieceAt(start); !ids.IsEmpty; piece++)
        {
            Piece p = stream.Pieces[piece];
            KeepOpen(p.File);
            long within = start - stream.Starts[piece];
            while (within < p.Bytes && !ids.IsEmpty)
            {
                Span<byte> bytes = _scratch.AsSpan(
                    0, (int)Math.Min(Math.Min(p.Bytes - within, ids.Length), _scratch.Length));
                try
                {
                    p.File.Read(p.Offset + within, bytes);
                }
                catch (IOException) when (CloseOthers(p.File))
                {
                    p.File.Read(p.Offset + within, bytes); // the process may have no more files open
                }

                ByteVocabulary.Encode(bytes, ids);
                within += bytes.Length;
                start += bytes.Length;
                ids = ids[bytes.Length..];
            }

            if (!ids.IsEmpty)
            {
                ids[0] = ByteVocabulary.EndOfText;
                ids = ids[1..];
                start++;
            }
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (TextFile? file in _open)
        {
            file?.Dispose();
        }
    }

    /// <summary>
    /// A file opens itself when it is read. Some stay open, so that steps over a few files open none; most are closed
    /// again, since a corpus may have more files than a process may open.
    /// </summary>
    private void KeepOpen(TextFile file)
    {
        if (Array.IndexOf(_open, file) < 0)
        {
            _open[_nextToClose]?.Dispose();
            _open[_nextToClose] = file;
            _nextToClose = (_nextToClose + 1) % _open.Length;
        }
    }

    private bool Inspect(TextFile file, IncrementalHash hash)
    {
        try
        {
            KeepOpen(file);
            return file.Inspect(hash, _scratch);
        }
        catch (IOException) when (CloseOthers(file))
        {
            return file.Inspect(hash, _scratch); // nothing had been read: the process may have no more files open
        }
        catch (ReformerFormatException)
        {
            Dispose();
            throw;
        }
    }

    /// <summary>Whether there was another file to close.</summary>
    private bool CloseOthers(TextFile file)
    {
        bool closed = false;
        for (int i = 0; i < _open.Length; i++)
        {
            if (_open[i] is { } other && other != file)
            {
                other.Dispose();
                _open[i] = null;
                closed = true;
            }
        }

        return closed;
    }

    private sealed record Piece(TextFile File, long Offset, long Bytes);

    /// <summary>Pieces one after the other, one end-of-text id after each.</summary>
    private sealed class Stream
    {
        public Stream(List<Piece> pieces)
        {
            Pieces = [.. pieces.Where(piece => piece.Bytes > 0)];
            Starts = new long[Pieces.Length];
            for (int i = 0; i < Pieces.Length; i++)
            {
                Starts[i] = Length;
                Length += Pieces[i].Bytes + 1;
            }
        }

        public Piece[] Pieces { get; }

        public long[] Starts { get; }

        public long Length { get; }

        public int PieceAt(long position)
        {
            int found = Array.BinarySearch(Starts, position);
            return found >= 0 ? found : ~found - 1;
        }
    }
}
