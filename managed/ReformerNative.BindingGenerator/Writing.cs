using System.Text;

namespace ReformerNative.BindingGenerator;

/// <summary>Lines of at most 120 columns.</summary>
internal static class Writing
{
    private const int Columns = 120;

    /// <summary>Words in lines that begin with a prefix.</summary>
    public static string Wrap(string text, string first, string others)
    {
        var lines = new StringBuilder();
        string line = first;
        bool empty = true;
        foreach (string word in text.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries))
        {
            if (!empty && line.Length + 1 + word.Length > Columns)
            {
                lines.Append(line).Append('\n');
                line = others;
                empty = true;
            }

            line += empty ? word : " " + word;
            empty = false;
        }

        return lines.Append(line.TrimEnd()).Append('\n').ToString();
    }

    /// <summary>Joins lines that were broken for width alone; short ones are formulas, or rows of a list.</summary>
    public static string Unwrap(string text)
    {
        var joined = new StringBuilder();
        string previous = "";
        foreach (string line in text.Split('\n'))
        {
            joined.Append(joined.Length == 0 ? "" : previous.Length > Columns * 3 / 4 ? " " : "\n").Append(line);
            previous = line;
        }

        return joined.ToString();
    }

    /// <summary>A documentation comment of one element.</summary>
    public static string Document(string indent, string text, string element = "summary")
    {
        string name = element.Split(' ')[0];
        string line = $"{indent}/// <{element}>{text}</{name}>";
        string prefix = $"{indent}/// ";
        return !text.Contains('\n', StringComparison.Ordinal) && line.Length <= Columns
            ? line + "\n"
            : $"{prefix}<{element}>\n"
                + string.Concat(text.Split('\n').Select(part => Wrap(part, prefix, prefix)))
                + $"{prefix}</{name}>\n";
    }

    /// <summary>A call or declaration: arguments go to lines of their own when one line does not hold them.</summary>
    public static string Call(string indent, string before, IEnumerable<string> arguments, string after)
    {
        string[] all = [.. arguments];
        string line = $"{indent}{before}{string.Join(", ", all)}{after}";
        if (line.Length <= Columns)
        {
            return line + "\n";
        }

        var lines = new StringBuilder($"{indent}{before.TrimEnd()}\n");
        line = indent + "    ";
        for (int i = 0; i < all.Length; i++)
        {
            string argument = all[i] + (i < all.Length - 1 ? "," : after);
            if (line.Trim().Length > 0 && line.Length + 1 + argument.Length > Columns)
            {
                lines.Append(line).Append('\n');
                line = indent + "    ";
            }

            line += (line.Trim().Length > 0 ? " " : "") + argument;
        }

        return lines.Append(line).Append('\n').ToString();
    }

    /// <summary>Text as it stands in XML.</summary>
    public static string Escape(string text) => text.Replace("&", "&amp;", StringComparison.Ordinal)
        .Replace("<", "&lt;", StringComparison.Ordinal).Replace(">", "&gt;", StringComparison.Ordinal);
}
