using System.Text;

namespace ReformerNative.Cli;

/// <summary>
/// Standard output or error that may fail at any moment (a full disk, a device that takes nothing) without ending the
/// work: what cannot be written is dropped, and the first failure is kept, to be told at the end.
/// </summary>
internal sealed class LossyStream : Stream
{
    private readonly Stream _inner;

    private LossyStream(Stream inner)
    {
        _inner = inner;

        // The runtime prepares the terminal at the first write, for which it opens files. Now there are some left.
        Write([]);
    }

    /// <summary>Why something could not be written; null while everything could.</summary>
    public string? Problem { get; private set; }

    public override bool CanRead => false;

    public override bool CanSeek => false;

    public override bool CanWrite => true;

    public override long Length => throw new NotSupportedException();

    public override long Position
    {
        get => throw new NotSupportedException();
        set => throw new NotSupportedException();
    }

    /// <summary>Puts such streams under everything that is printed from now on.</summary>
    /// <returns>The one of standard output.</returns>
    [System.Diagnostics.CodeAnalysis.SuppressMessage(
        "Reliability", "CA2000", Justification = "They live as long as the process.")]
    public static LossyStream Install()
    {
        var output = new LossyStream(Console.OpenStandardOutput());
        Console.SetOut(WriterOf(output));
        Console.SetError(WriterOf(new LossyStream(Console.OpenStandardError())));
        return output;
    }

    public override void Write(ReadOnlySpan<byte> buffer)
    {
        try
        {
            _inner.Write(buffer);
        }
        catch (IOException error)
        {
            Problem ??= error.Message;
        }
    }

    public override void Write(byte[] buffer, int offset, int count) => Write(buffer.AsSpan(offset, count));

    public override void Flush()
    {
        // The inner stream holds nothing back.
    }

    public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();

    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    public override void SetLength(long value) => throw new NotSupportedException();

    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            _inner.Dispose();
        }

        base.Dispose(disposing);
    }

    private static StreamWriter WriterOf(LossyStream stream) =>
        new(stream, new UTF8Encoding(encoderShouldEmitUTF8Identifier: false)) { AutoFlush = true };
}
