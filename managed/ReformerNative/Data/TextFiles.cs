using System.IO.MemoryMappedFiles;
using System.Security.Cryptography;
using System.Text;

namespace ReformerNative.Data;

/// <summary>
/// Byte-level text of files and folders, memory-mapped. The last part of every file is held out; what remains of all
/// files, in the order of their paths, is one long stream with an end-of-text id between files. A training example is a
/// stretch of it that begins anywhere. Dispose closes the files, which must not be changed while they are open.
/// </summary>
public sealed class TextFiles : IBatchSource, IDisposable
{
    private readonly List<MappedFile> _files = [];
    private readonly Stream[] _streams;
    private readonly byte[] _scratch = new byte[1 << 16];

    private TextFiles(List<(string Path, long Bytes)> files, double heldOutFraction)
    {
        var heads = new List<Piece>();
        var tails = new List<Piece>();
        var identity = new StringBuilder();
        try
        {
            foreach ((string path, long bytes) in files)
            {
                var file = new MappedFile(path, bytes);
                _files.Add(file);
                long tail = (long)Math.Ceiling(bytes * heldOutFraction);
                heads.Add(new Piece(file, 0, bytes - tail));
                tails.Add(new Piece(file, bytes - tail, tail));
                identity.Append(System.IO.Path.GetFileName(path)).Append('\0').Append(bytes).Append('\n');
            }
        }
        catch
        {
            Dispose();
            throw;
        }

        _streams = [new Stream(heads), new Stream(tails)];
        ByteCount = files.Sum(file => file.Bytes);
        string hash = Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(identity.ToString())))[..16];
        Identity = FormattableString.Invariant(
            $"bytes of {files.Count} files, {ByteCount} bytes, names and sizes {hash}, held out {heldOutFraction}");
    }

    /// <inheritdoc/>
    public string Identity { get; }

    /// <inheritdoc/>
    public int VocabularySize => ByteVocabulary.Size;

    /// <summary>Number of files that are not empty.</summary>
    public int FileCount => _files.Count;

    /// <summary>Bytes in all files, both splits.</summary>
    public long ByteCount { get; }

    /// <summary>Opens files and folders.</summary>
    /// <param name="paths">Files, and folders of which all files that match the pattern are taken, with those of the
    /// folders in them.</param>
    /// <param name="pattern">File name pattern for folders, with * and ?.</param>
    /// <param name="heldOutFraction">Part of every file that is held out, 0 &lt;= f &lt; 1.</param>
    /// <returns>The text, which the caller disposes.</returns>
    /// <exception cref="FileNotFoundException">A path does not exist, or no text was found.</exception>
    public static TextFiles Open(IEnumerable<string> paths, string pattern = "*", double heldOutFraction = 0.05)
    {
        ArgumentNullException.ThrowIfNull(paths);
        if (!(heldOutFraction >= 0 && heldOutFraction < 1))
        {
            throw new ArgumentOutOfRangeException(
                nameof(heldOutFraction), heldOutFraction, "expected 0 <= held-out fraction < 1");
        }

        var files = new List<(string Path, long Bytes)>();
        foreach (string path in paths)
        {
            if (Directory.Exists(path))
            {
                // Ordinal order: the same on every machine.
                files.AddRange(Directory.EnumerateFiles(path, pattern, SearchOption.AllDirectories)
                    .Order(StringComparer.Ordinal)
                    .Select(file => (file, new FileInfo(file).Length)));
            }
            else if (File.Exists(path))
            {
                files.Add((path, new FileInfo(path).Length));
            }
            else
            {
                throw new FileNotFoundException($"{path}: expected a text file or a folder, found nothing", path);
            }
        }

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
    public void Read(DataSplit split, long start, Span<int> ids)
    {
        Stream stream = _streams[(int)split];
        ArgumentOutOfRangeException.ThrowIfNegative(start);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(start, stream.Length - ids.Length);
        for (int piece = stream.PieceAt(start); !ids.IsEmpty; piece++)
        {
            Piece p = stream.Pieces[piece];
            long within = start - stream.Starts[piece];
            while (within < p.Bytes && !ids.IsEmpty)
            {
                Span<byte> bytes = _scratch.AsSpan(
                    0, (int)Math.Min(Math.Min(p.Bytes - within, ids.Length), _scratch.Length));
                p.File.Read(p.Offset + within, bytes);
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
        foreach (MappedFile file in _files)
        {
            file.Dispose();
        }
    }

    private sealed record Piece(MappedFile File, long Offset, long Bytes);

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

    private sealed class MappedFile : IDisposable
    {
        private readonly MemoryMappedFile _file;
        private readonly MemoryMappedViewAccessor _view;

        public MappedFile(string path, long bytes)
        {
            _file = MemoryMappedFile.CreateFromFile(
                path, FileMode.Open, mapName: null, capacity: 0, MemoryMappedFileAccess.Read);
            try
            {
                _view = _file.CreateViewAccessor(0, bytes, MemoryMappedFileAccess.Read);
            }
            catch
            {
                _file.Dispose();
                throw;
            }
        }

        public void Read(long offset, Span<byte> bytes) =>
            _view.SafeMemoryMappedViewHandle.ReadSpan((ulong)(_view.PointerOffset + offset), bytes);

        public void Dispose()
        {
            _view.Dispose();
            _file.Dispose();
        }
    }
}
