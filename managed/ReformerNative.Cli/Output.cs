using System.Globalization;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;
using ReformerNative.Model;
using ReformerNative.Tensors;
using Spectre.Console;

namespace ReformerNative.Cli;

/// <summary>What commands print: JSON lines for programs, tables and plain sentences for people.</summary>
internal static class Output
{
    private const int PipeWidth = 150; // columns of a table that goes to a file

    private static readonly JsonSerializerOptions OneLine = new()
    {
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    };

    /// <summary>Prints one JSON object on one line.</summary>
    public static void Json(JsonObject item) => Console.Out.WriteLine(Line(item));

    /// <summary>One JSON object as one line.</summary>
    public static string Line(JsonObject item) => item.ToJsonString(OneLine);

    /// <summary>A number, or null for one that JSON does not have.</summary>
    public static JsonNode? Number(double value) => double.IsFinite(value) ? JsonValue.Create(value) : null;

    /// <summary>A table without lines; the first column is text, the others are numbers.</summary>
    public static void Table(IReadOnlyList<string> heads, IEnumerable<IReadOnlyList<string>> rows)
    {
        IAnsiConsole console = AnsiConsole.Console;
        if (Console.IsOutputRedirected)
        {
            console.Profile.Width = PipeWidth;
        }

        var table = new Table { Border = TableBorder.None };
        for (int i = 0; i < heads.Count; i++)
        {
            var column = new TableColumn(new Text(heads[i]))
            {
                NoWrap = true,
                Alignment = i == 0 ? Justify.Left : Justify.Right,
            };
            table.AddColumn(column);
        }

        foreach (IReadOnlyList<string> row in rows)
        {
            table.AddRow(row.Select(cell => new Text(cell)));
        }

        console.Write(table);
    }

    /// <summary>How many layers keep what, for programs.</summary>
    public static JsonObject Kept(IReadOnlyList<KeepActivations> kept) => new()
    {
        ["nothing"] = kept.Count(level => level == KeepActivations.Nothing),
        ["streams"] = kept.Count(level => level == KeepActivations.Streams),
        ["all"] = kept.Count(level => level == KeepActivations.All),
    };

    /// <summary>The same for people.</summary>
    public static string KeptText(IReadOnlyList<KeepActivations> kept) =>
        string.Join(
            ", ",
            Kept(kept)
                .Where(item => item.Value!.GetValue<int>() > 0)
                .Select(item => Text($"{item.Key} of {item.Value!.GetValue<int>()}"))
        );

    /// <summary>Where and how a context computes.</summary>
    public static string Place(ReformerContext context) => context.Device.Type == DeviceType.Cpu
        ? Text($"{context.Device}, {context.Threads} threads")
        : $"{context.Device}, {CommonOptions.NameOf(context.Precision)}";

    public static string Bytes(double bytes) => bytes switch
    {
        >= 1L << 30 => string.Create(CultureInfo.InvariantCulture, $"{bytes / (1L << 30):F2} GiB"),
        >= 1 << 20 => string.Create(CultureInfo.InvariantCulture, $"{bytes / (1 << 20):F1} MiB"),
        >= 1 << 10 => string.Create(CultureInfo.InvariantCulture, $"{bytes / (1 << 10):F1} KiB"),
        _ => string.Create(CultureInfo.InvariantCulture, $"{bytes:F0} B"),
    };

    public static string Duration(double seconds)
    {
        if (!double.IsFinite(seconds) || seconds >= 1e7)
        {
            return "-";
        }

        var time = TimeSpan.FromSeconds(Math.Ceiling(seconds));
        return time.TotalHours >= 1
            ? string.Create(CultureInfo.InvariantCulture, $"{(int)time.TotalHours}:{time.Minutes:00}:{time.Seconds:00}")
            : string.Create(CultureInfo.InvariantCulture, $"{time.Minutes}:{time.Seconds:00}");
    }

    public static string Text(FormattableString text) => FormattableString.Invariant(text);
}
