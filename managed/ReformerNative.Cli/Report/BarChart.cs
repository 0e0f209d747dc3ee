using System.Net;
using System.Text;

namespace ReformerNative.Cli.Report;

/// <summary>Horizontal bars of shares as SVG, from 0 to 100 % or as far as they go.</summary>
internal static class BarChart
{
    private const double Width = 480;
    private const double Left = 190;
    private const double Right = 430;
    private const double Row = 28;
    private const double Bar = 16;
    private const double Top = 6;

    public static void Write(
        StringBuilder html, string id, string description, IReadOnlyList<(string Name, double Share)> bars)
    {
        double largest = bars.Max(bar => bar.Share);
        double step = 0.25 * Math.Max(1, Math.Ceiling(largest)); // four or fewer
        double most = Math.Max(1, Math.Ceiling(largest / step) * step);
        double bottom = Top + (Row * bars.Count);
        double X(double share) => Left + ((Right - Left) * share / most);
        html.Append(Output.Text($"""<svg viewBox="0 0 {Width} {bottom + 26}" role="img" aria-labelledby="{id}-t">"""));
        html.Append($"""<title id="{id}-t">{WebUtility.HtmlEncode(description)}</title>""");
        for (double tick = 0; tick <= most; tick += step)
        {
            html.Append(Output.Text($"""<path class="grid" d="M{X(tick):F1} {Top}V{bottom}"/>"""));
            html.Append(
                Output.Text($"""<text class="mid" x="{X(tick):F1}" y="{bottom + 18}">{100 * tick:F0} %</text>""")
            );
        }

        foreach (((string name, double share), int i) in bars.Select((bar, i) => (bar, i)))
        {
            double y = Top + (Row * i) + (Row / 2);
            html.Append(
                Output.Text(
                    $"""<text class="end" x="{Left - 8}" y="{y}" dy=".35em">{WebUtility.HtmlEncode(name)}</text>"""
                )
            );
            html.Append(
                Output.Text(
                    $"""
                    <g class="s1"><rect x="{Left}" y="{y - (Bar / 2)}" width="{X(share) - Left:F1}" height="{Bar}"/></g>
                    """)
            );
            html.Append(Output.Text($"""<text x="{X(share) + 5:F1}" y="{y}" dy=".35em">{100 * share:F0} %</text>"""));
        }

        html.AppendLine("</svg>");
    }
}
