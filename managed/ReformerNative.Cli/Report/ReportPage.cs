using System.Net;
using System.Text;

namespace ReformerNative.Cli.Report;

/// <summary>The page: one file, HTML that is XML too, without scripts and without anything from elsewhere.</summary>
internal static class ReportPage
{
    private const string Style = """
        :root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --quiet: #57606a; --line: #d8dee4;
          --code: #f3f5f7;
          --s0: #b3261e; --s1: #0b62a4; --s2: #1a7f45; --s3: #8250c8; --s4: #a15c00; }
        @media (prefers-color-scheme: dark) {
          :root { --back: #14181d; --text: #e6edf3; --quiet: #9da7b1; --line: #343b44; --code: #1f252c;
            --s0: #ff8a80; --s1: #6cbcff; --s2: #6fd694; --s3: #cdaaff; --s4: #ffbd5c; } }
        * { box-sizing: border-box; }
        body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
        main { max-width: 760px; margin: 0 auto; padding: 16px; }
        h1 { font-size: 1.6em; line-height: 1.2; margin: .4em 0; }
        h2 { font-size: 1.25em; margin: 2em 0 .4em; }
        p { margin: .5em 0; }
        .quiet { color: var(--quiet); }
        figure { margin: 1em 0; }
        svg { display: block; width: 100%; height: auto; }
        svg text { font-size: 14px; fill: var(--text); }
        @media (min-width: 600px) { svg text { font-size: 10px; } }
        .end { text-anchor: end; } .mid { text-anchor: middle; }
        .grid { stroke: var(--line); stroke-width: 1; } .axis { stroke: var(--quiet); stroke-width: 1; }
        .line { fill: none; stroke-width: 1.8; }
        .s0 { fill: var(--s0); stroke: var(--s0); } .s1 { fill: var(--s1); stroke: var(--s1); }
        .s2 { fill: var(--s2); stroke: var(--s2); }
        .s3 { fill: var(--s3); stroke: var(--s3); } .s4 { fill: var(--s4); stroke: var(--s4); }
        svg .line { fill: none; }
        .legend { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; margin: 0 0 6px; padding: 0; }
        .legend svg { display: inline-block; width: 16px; height: 16px; margin-right: 6px; vertical-align: -3px; }
        .scroll { overflow-x: auto; margin: 1em 0; }
        table { border-collapse: collapse; font-size: .9em; font-variant-numeric: tabular-nums; }
        th, td { padding: 3px 14px 3px 0; text-align: right; white-space: nowrap;
                 border-bottom: 1px solid var(--line); font-weight: normal; }
        thead th { color: var(--quiet); }
        th:first-child, .machine td { text-align: left; } .machine td { white-space: normal; overflow-wrap: anywhere; }
        ul.commands { background: var(--code); padding: 10px 12px 10px 30px; border-radius: 6px; list-style: none; }
        .commands li { margin: 4px 0; text-indent: -18px; font: .82em/1.5 ui-monospace, monospace; }
        .commands span { display: inline-block; max-width: 100%; overflow-wrap: anywhere; text-indent: 0; }
        """;

    private static readonly string[] SeriesNames = [.. new[] { 0, 1, 2, 4, 8 }.Select(ReportMeasurements.SeriesName)];

    public static string Write(ReportData data)
    {
        var html = new StringBuilder();
        html.AppendLine("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>");
        html.AppendLine("""<meta name="viewport" content="width=device-width, initial-scale=1"/>""");
        html.AppendLine("""<link rel="icon" href="data:,"/>"""); // else a browser asks the server for one
        html.AppendLine(
            $"<title>ReformerNative {Encode(data.Version)}: "
                + $"measurements</title>\n<style>\n{Style}\n</style>\n</head>\n<body>\n<main>"
        );
        html.AppendLine("<h1>ReformerNative: measurements</h1>");
        html.AppendLine(
            $"""<p class="quiet">Version {Encode(data.Version)}, {data.Measured:u}, """
                + $"{Encode(data.Machine[0].Value)}</p>"
        );
        Time(html, data);
        Memory(html, data);
        if (data.Shares.Count > 0)
        {
            Shares(html, data);
        }

        html.AppendLine("<h2>Machine</h2>");
        Table(html, "machine", "Machine", ["", ""], data.Machine.Select(item => (string[])[item.Name, item.Value]));
        html.AppendLine(
            "<h2>Commands</h2>\n<p>This page is the output of the first; the others measure one line's last point, or "
                + "one depth.</p>"
        );
        html.AppendLine("<ul class=\"commands\">");
        foreach (string command in data.Commands)
        {
            // Lines break at spaces alone.
            IEnumerable<string> words = command.Split(' ').Select(word => $"<span>{Encode(word)}</span>");
            html.AppendLine($"<li>{string.Join(' ', words)}</li>");
        }

        html.AppendLine("</ul>\n</main>\n</body>\n</html>");
        return html.ToString();
    }

    private static void Time(StringBuilder html, ReportData data)
    {
        html.AppendLine("<h2>Time against length</h2>");
        html.AppendLine(
            Output.Text(
                $"""
                <p>Causal attention of 8 heads of 64 over {data.Tokens:N0} tokens in all, as in figure 5 of the Reformer
                paper: longer sequences are fewer in a batch, so that dense attention costs in proportion to the length
                and LSH attention about the same throughout. Chunks of 64, hashing and sorting included.</p>
                """
            )
        );
        Crossover(html, data);
        foreach (
            (string name, string id, Func<TimePoint, double> seconds) in new (string, string, Func<TimePoint, double>)[]
            {
                ("Forward", "forward", point => point.ForwardSeconds),
                ("Forward and backward", "both", point => point.ForwardBackwardSeconds),
            }
        )
        {
            string title = $"{name}: time of a batch";
            var chart = new LineChart
            {
                Id = id,
                Description = Output.Text(
                    $"{title} of {data.Tokens:N0} tokens against the length of its sequences. The table has the values."
                ),
                XTitle = "tokens of a sequence",
                IsLogarithmic = true,
                FormatX = Count,
                FormatY = Seconds,
                NiceStep = step => step,
                Series =
                [
                    .. SeriesNames.Select(
                        (series, i) =>
                            new Series(
                                series,
                                i,
                                [
                                    .. data
                                        .Times.Where(point => point.Series == series)
                                        .Select(point => ((double)point.Length, seconds(point))),
                                ]
                            )
                    ),
                ],
            };
            Figure(html, title, chart);
            Table(
                html,
                "",
                title,
                ["length / batch", .. SeriesNames],
                data.Times.GroupBy(point => point.Length)
                    .Select(group =>
                        (string[])
                            [
                                $"{Count(group.Key)} / {group.First().Batch}",
                                .. group.Select(point => Seconds(seconds(point))),
                            ]
                    )
            );
        }
    }

    /// <summary>A sentence: from which measured length on LSH attention with 4 rounds is faster.</summary>
    private static void Crossover(StringBuilder html, ReportData data)
    {
        Dictionary<int, double> Of(string series) =>
            data
                .Times.Where(point => point.Series == series)
                .ToDictionary(point => point.Length, point => point.ForwardBackwardSeconds);
        Dictionary<int, double> dense = Of(SeriesNames[0]);
        Dictionary<int, double> lsh = Of(ReportMeasurements.SeriesName(4));
        int[] faster = [.. dense.Keys.OrderDescending().TakeWhile(length => lsh[length] < dense[length])];
        html.AppendLine(
            faster.Length == 0
                ? "<p>At none of the measured lengths LSH attention with 4 rounds is faster than dense attention, "
                    + "forward and backward.</p>"
                : "<p>LSH attention with 4 rounds is faster than dense attention, forward and backward, from "
                    + $"{Count(faster[^1])} tokens on.</p>"
        );
    }

    private static void Memory(StringBuilder html, ReportData data)
    {
        const string title = "Memory of a training step";
        html.AppendLine("<h2>Memory against depth</h2>");
        html.AppendLine(
            $"""
            <p>A training step at {Count(
                data.MemoryLength)} tokens, width 512, LSH and local layers in turn. Planned is what
            <code>reformer plan</code> says beforehand; of it, activations, their gradients and scratch do not
            depend on the depth, because reversible layers recover their inputs. The rest are parameters, gradients and
            the optimizer's state, and the process itself. Measured is the peak resident memory of a real step.</p>
            """);
        List<Series> series =
        [
            new("planned", 1, [.. data.Memory.Select(point => ((double)point.Layers, (double)point.Planned))]),
            new(
                "of it activations and scratch", 2,
                [.. data.Memory.Select(point => ((double)point.Layers, (double)point.Activations))]),
        ];
        MemoryPoint[] measured = [.. data.Memory.Where(point => point.Measured is not null)];
        if (measured.Length > 0)
        {
            series.Add(
                new(
                    "measured", 0, [.. measured.Select(point => ((double)point.Layers, (double)point.Measured!.Value))],
                    HasLine: false)
            );
        }

        Figure(
            html,
            title,
            new LineChart
            {
                Id = "memory",
                Description = $"{title} against its number of layers, planned and measured. The table has the values.",
                XTitle = "layers",
                IsLogarithmic = false,
                FormatX = Count,
                FormatY = bytes => bytes == 0 ? "0" : Output.Bytes(bytes),
                NiceStep = step => Math.Pow(2, Math.Ceiling(Math.Log2(step))),
                Series = series,
            }
        );
        Table(
            html,
            "",
            title,
            ["layers", "planned", "activations and scratch", "measured"],
            data.Memory.Select(point =>
                (string[])
                    [
                        Count(point.Layers),
                        Output.Bytes(point.Planned),
                        Output.Bytes(point.Activations),
                        point.Measured is long bytes ? Output.Bytes(bytes) : "not measured",
                    ]
            )
        );
    }

    private static void Shares(StringBuilder html, ReportData data)
    {
        const string title = "Share of the ceiling";
        html.AppendLine($"<h2>{title}</h2>");
        html.AppendLine("""
            <p>Floating point operations of the products alone, per second, over those of a product of two
            2048 × 2048 matrices measured just before with the same threads. Attention is causal, forward and backward,
            LSH with 4 rounds; the step is that of 6 layers. LSH windows count whole, although most of what a causal
            mask hides of them is not computed. What is not a product (softmax, hashing, sorting, norms, optimizer)
            takes time and counts for nothing.</p>
            """);
        html.AppendLine($"<figure>\n<figcaption>{title}</figcaption>");
        (string Name, double Share)[] bars = [.. data.Shares.Select(point => (point.Name, point.Share))];
        BarChart.Write(html, "share", $"{title} that each op reaches. The table has the values.", bars);
        html.AppendLine("</figure>");
        Table(
            html,
            "",
            title,
            ["op", "time", "GFLOP/s", "of the product", "product, GFLOP/s"],
            data.Shares.Select(point =>
                (string[])
                    [
                        point.Name,
                        Seconds(point.Seconds),
                        Output.Text($"{point.Flops / point.Seconds / 1e9:F1}"),
                        Output.Text($"{100 * point.Share:F1} %"),
                        Output.Text($"{point.Sgemm:F1}"),
                    ]
            )
        );
    }

    private static void Figure(StringBuilder html, string title, LineChart chart)
    {
        html.AppendLine($"<figure>\n<figcaption>{Encode(title)}</figcaption>\n<ul class=\"legend\">");
        foreach (Series series in chart.Series)
        {
            html.Append(Output.Text($"""<li><svg class="s{series.Style}" viewBox="-6 -6 12 12" aria-hidden="true">"""));
            html.AppendLine($"{LineChart.Marker(series.Style)}</svg>{Encode(series.Name)}</li>");
        }

        html.AppendLine("</ul>");
        chart.Write(html);
        html.AppendLine("</figure>");
    }

    /// <summary>A table that scrolls by itself where the page is narrow; the first column names the rows.</summary>
    private static void Table(StringBuilder html, string style, string name, string[] heads, IEnumerable<string[]> rows)
    {
        html.AppendLine(
            $"""<div class="scroll" role="region" tabindex="0" aria-label="{Encode(name)}, table">"""
                + $"""<table class="{style}">"""
        );
        if (heads.Any(head => head.Length > 0))
        {
            html.AppendLine(
                "<thead><tr>"
                    + string.Concat(heads.Select(head => $"<th scope=\"col\">{Encode(head)}</th>"))
                    + "</tr></thead>"
            );
        }

        html.AppendLine("<tbody>");
        foreach (string[] row in rows)
        {
            html.AppendLine(
                $"<tr><th scope=\"row\">{Encode(row[0])}</th>"
                    + string.Concat(row[1..].Select(cell => $"<td>{Encode(cell)}</td>"))
                    + "</tr>"
            );
        }

        html.AppendLine("</tbody></table></div>");
    }

    private static string Encode(string text) => WebUtility.HtmlEncode(text);

    private static string Count(double number) => Output.Text($"{number:N0}");

    private static string Seconds(double seconds) => seconds switch
    {
        >= 100 => Output.Text($"{seconds:F0} s"),
        >= 1 => Output.Text($"{seconds:G3} s"),
        >= 1e-3 => Output.Text($"{seconds * 1e3:G3} ms"),
        _ => Output.Text($"{seconds * 1e6:G3} µs"),
    };
}
