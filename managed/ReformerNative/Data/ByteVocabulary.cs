namespace ReformerNative.Data;

/// <summary>
/// The byte vocabulary of the published character model: id = byte + 2; id 0 is padding, id 1 the end of a text. 258
/// ids in all.
/// </summary>
public static class ByteVocabulary
{
    /// <summary>Number of ids.</summary>
    public const int Size = 258;

    /// <summary>The id between two texts.</summary>
    public const int EndOfText = 1;

    private const int FirstByte = 2;

    /// <summary>Turns bytes into ids.</summary>
    /// <param name="bytes">The bytes.</param>
    /// <param name="ids">Takes one id a byte; at least as long as the bytes.</param>
    public static void Encode(ReadOnlySpan<byte> bytes, Span<int> ids)
    {
        for (int i = 0; i < bytes.Length; i++)
        {
            ids[i] = bytes[i] + FirstByte;
        }
    }

    /// <summary>Turns a text's UTF-8 bytes into ids.</summary>
    /// <param name="text">The text.</param>
    /// <returns>One id a byte.</returns>
    public static int[] Encode(string text)
    {
        byte[] bytes = System.Text.Encoding.UTF8.GetBytes(text);
        var ids = new int[bytes.Length];
        Encode(bytes, ids);
        return ids;
    }

    /// <summary>Turns ids back into bytes; ids 0 and 1 stand for nothing.</summary>
    /// <param name="ids">The ids.</param>
    /// <returns>The bytes.</returns>
    public static byte[] Decode(ReadOnlySpan<int> ids)
    {
        var bytes = new List<byte>(ids.Length);
        foreach (int id in ids)
        {
            if (id is >= FirstByte and < Size)
            {
                bytes.Add((byte)(id - FirstByte));
            }
        }

        return [.. bytes];
    }
}
