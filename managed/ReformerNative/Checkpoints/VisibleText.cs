using System.Globalization;
using System.Text;

namespace ReformerNative.Checkpoints;

/// <summary>
/// Text of others (names in files, names of files) in our messages. What a terminal would obey or not show is written
/// as its number, so that no file can colour, move or forge what is printed.
/// </summary>
internal static class VisibleText
{
    private const int MostCharacters = 4000; // a name in a damaged file may be megabytes long

    /// <summary>The text on one line, cut where it is too long to be read.</summary>
    public static string Of(string text)
    {
        var visible = new StringBuilder(Math.Min(text.Length, MostCharacters));
        foreach (Rune rune in text.EnumerateRunes())
        {
            if (visible.Length >= MostCharacters)
            {
                return visible.Append("...").ToString();
            }

            _ = Rune.GetUnicodeCategory(rune) is UnicodeCategory.Control or UnicodeCategory.Format
                or UnicodeCategory.LineSeparator or UnicodeCategory.ParagraphSeparator
                ? visible.Append(CultureInfo.InvariantCulture, $"\\u{rune.Value:x4}")
                : visible.Append(rune.ToString());
        }

        return visible.ToString();
    }
}
