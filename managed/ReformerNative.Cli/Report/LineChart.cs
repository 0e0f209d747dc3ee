using System.Net;
using System.Text;

namespace ReformerNative.Cli.Report;

/// <summary>A named line of a chart; <see cref="Style"/> chooses its colour and marker.</summary>
internal sealed record Series(string Name, int Style, IReadOnlyList<(double X, double Y)> Points, bool HasLine = true);

/// <summary>A chart of lines as SVG, with both axes logarithmic, or both linear and the y axis from 0.</summary>
internal sealed record LineChart
{
    private const double Width = 480; // of the view box; text is sized in its units by the page's style
    private const double Height = 320;
    private const double Left = 66;
    private const double Right = 466;
    private const double Top = 12;
    private const double Margin = 12; // between the axis' ends and the first and last points
    private const double Bottom = 268;
    private const int Steps = 4; // of a linear axis, about

    private static readonly int[] Mantissas = [1, 2, 5];

    /// <summary>What the chart shows, in a sentence: its name for readers who do not see it.</summary>
    public required string Description { get; init; }

    /// <summary>Identifier in the page.</summary>
    public required string Id { get; init; }

    public required string XTitle { get; init; }

    public required bool IsLogarithmic { get; init; }

    public required Func<double, string> FormatX { get; init; }

    public required Func<double, string> FormatY { get; init; }

    /// <summary>Step of a linear axis that reads well, at least the given one.</summary>
    public required Func<double, double> NiceStep { get; init; }

    public required IReadOnlyList<Series> Series { get; init; }

    /// <summary>A marker around the origin.</summary>
    public static string Marker(int style) => style switch
    {
        0 => """<circle r="3.6"/>""",
        1 => """<rect x="-3.2" y="-3.2" width="6.4" height="6.4"/>""",
        2 => """<path d="M0-4.4 4.2 3.2H-4.2Z"/>""",
        3 => """<path d="M0-4.8 4.8 0 0 4.8-4.8 0Z"/>""",
        _ => """<path d="M-1.3-4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4V-1.3H-1.3Z"/>""",
    };

    public void Write(StringBuilder html)
    {
        double[] xs = [.. Series.SelectMany(series => series.Points.Select(point => point.X)).Distinct().Order()];
        double[] ys = [.. Series.SelectMany(series => series.Points.Select(point => point.Y))];
        double[] ticks = IsLogarithmic ? LogarithmicTicks(ys.Min(), ys.Max()) : LinearTicks(ys.Max());
        double X(double x) => xs.Length == 1
            ? (Left + Right) / 2
            : Left + Margin + ((Right - Left - (2 * Margin)) * (IsLogarithmic
                ? Math.Log(x / xs[0]) / Math.Log(xs[^1] / xs[0])
                : (x - xs[0]) / (xs[^1] - xs[0])));
        double Y(double y) => Bottom - ((Bottom - Top) * (IsLogarithmic
            ? Math.Log(y / ticks[0]) / Math.Log(ticks[^1] / ticks[0])
            : y / ticks[^1]));

        html.Append(Output.Text($"""<svg viewBox="0 0 {Width} {Height}" role="img" aria-labelledby="{Id}-t">"""));
        html.Append($"""<title id="{Id}-t">{WebUtility.HtmlEncode(Description)}</title>""");
        foreach (double tick in ticks)
        {
            html.Append(Output.Text($"""<path class="grid" d="M{Left} {Y(tick):F1}H{Right}"/>"""));
            html.Append(
                Output.Text($"""<text class="end" x="{Left - 6}" y="{Y(tick):F1}" dy=".35em">{FormatY(tick)}</text>""")
            );
        }

        foreach (double x in xs)
        {
            html.Append(Output.Text($"""<path class="axis" d="M{X(x):F1} {Bottom}v4"/>"""));
            html.Append(Output.Text($"""<text class="mid" x="{X(x):F1}" y="{Bottom + 18}">{FormatX(x)}</text>"""));
        }

        html.Append(Output.Text($"""<path class="axis" d="M{Left} {Bottom}H{Right}"/>"""));
        html.Append(
            Output.Text(
                $"""
                <text class="mid" x="{(Left + Right) / 2}" y="{Height - 12}">{WebUtility.HtmlEncode(XTitle)}</text>
                """)
        );
        foreach (Series series in Series)
        {
            html.Append(Output.Text($"""<g class="s{series.Style}">"""));
            if (series.HasLine)
            {
                string line = string.Join(
                    'L', series.Points.Select(point => Output.Text($"{X(point.X):F1} {Y(point.Y):F1}")));
                html.Append($"""<path class="line" d="M{line}"/>""");
            }

            foreach ((double x, double y) in series.Points)
            {
                html.Append(Output.Text($"""<g transform="translate({X(x):F1} {Y(y):F1})">{Marker(series.Style)}"""));
                html.Append(
                    $"<title>{WebUtility.HtmlEncode($"{series.Name}, {FormatX(x)}: {FormatY(y)}")}</title></g>");
            }

            html.Append("</g>");
        }

        html.AppendLine("</svg>");
    }

    /// <summary>
    /// 1, 2 and 5 times powers of ten around the values; powers of ten alone when there would be many.
    /// </summary>
    private static double[] LogarithmicTicks(double lowest, double highest)
    {
        const int most = 9;
        int first = (int)Math.Floor(Math.Log10(lowest));
        int last = (int)Math.Ceiling(Math.Log10(highest));
        double[] all =
        [
            .. Enumerable
                .Range(first, last - first + 1)
                .SelectMany(power => Mantissas.Select(x => x * Math.Pow(10, power))),
        ];
        int from = Array.FindLastIndex(all, tick => tick <= lowest);
        int to = Array.FindIndex(all, tick => tick >= highest);
        double[] ticks = all[from..Math.Max(to + 1, from + 2)];
        return ticks.Length <= most
            ? ticks
            : [.. Enumerable.Range(first, Math.Max(2, last - first + 1)).Select(power => Math.Pow(10, power))];
    }

    private double[] LinearTicks(double highest)
    {
        double step = NiceStep(highest / Steps);
        return [.. Enumerable.Range(0, (int)Math.Ceiling(highest / step) + 1).Select(i => i * step)];
    }
}
