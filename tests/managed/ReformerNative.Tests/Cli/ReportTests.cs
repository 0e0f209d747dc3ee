using System.Text.Json;
using System.Xml;
using System.Xml.Linq;
using ReformerNative.Cli.Report;

namespace ReformerNative.Tests.Cli;

/// <summary><c>reformer bench report</c> and its page.</summary>
public sealed class ReportTests
{
    private static readonly int[] Rounds = [0, 1, 2, 4, 8];

    [Test]
    public void BenchReport_ShortLengths_WritesThePageAndTheSameNumbersAsJson()
    {
        using var directory = new TemporaryDirectory();
        string path = directory.File("page.html");
        ReformerResult result = ReformerProcess.Run(
            "bench", "report", "--quick", "--lengths", "64,128", "--tokens", "256", "--out", path, "--json");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement item = result.Lines.Single();
        Assert.That(
            CliInputs.Names(item),
            Is.EqualTo(
                (string[])
                    [
                        "version", "measured", "machine", "tokens", "attention", "memory_length", "memory", "shares",
                        "commands", "out",
                    ]
            )
        );

        JsonElement[] points = [.. item.GetProperty("attention").EnumerateArray()];
        int[] lengths = [.. points.Select(point => point.GetProperty("length").GetInt32())];
        Assert.That(lengths, Is.EqualTo(Rounds.Select(_ => 64).Concat(Rounds.Select(_ => 128))));
        Assert.That(
            points.Select(point => point.GetProperty("length").GetInt32() * point.GetProperty("batch").GetInt32()),
            Is.All.EqualTo(256));
        foreach (JsonElement point in points)
        {
            double forward = point.GetProperty("forward_seconds").GetDouble();
            Assert.That(point.GetProperty("forward_backward_seconds").GetDouble(), Is.GreaterThan(forward));
            Assert.That(point.GetProperty("sgemm_gflops").GetDouble(), Is.Positive);
        }

        JsonElement[] memory = [.. item.GetProperty("memory").EnumerateArray()];
        Assert.That(
            memory.Select(point => point.GetProperty("layers").GetInt32()), Is.EqualTo((int[])[2, 6, 12, 24, 48]));
        Assert.That(
            memory.Select(point => point.GetProperty("activation_bytes").GetInt64()).Distinct().Count(), Is.EqualTo(1),
            "whatever the depth");
        long planned = memory[0].GetProperty("planned_bytes").GetInt64();
        Assert.That(memory[0].GetProperty("peak_bytes").GetInt64(), Is.EqualTo(planned).Within(10).Percent);
        Assert.That(
            item.GetProperty("shares").EnumerateArray().Select(share => share.GetProperty("share").GetDouble()),
            Is.All.Positive);
        Assert.That(
            item.GetProperty("commands")[0].GetString(),
            Does.StartWith("reformer bench report --quick --lengths 64,128"));

        string text = File.ReadAllText(path);
        Assert.That(text, Does.Contain(item.GetProperty("machine").GetProperty("device").GetString()));
        CheckPage(text, markers: (2 * Rounds.Length * 2) + 5 + 5 + 1);
    }

    [Test]
    public void ReportPage_OneLengthAndOddNames_IsWellFormed()
    {
        var data = new ReportData
        {
            Version = "1",
            Measured = DateTime.UnixEpoch,
            Tokens = 7,
            MemoryLength = 1024,
            Machine = [("device", "<b> & \"quoted\"")],
            Commands = ["reformer bench report --out <&>.html"],
            Times =
            [
                .. Rounds.Select(
                    (rounds, i) =>
                        new TimePoint(
                            ReportMeasurements.SeriesName(rounds), 7, 1, 1e-7 * Math.Pow(30, i), 300, 1, 2, null)
                ),
            ],
            Memory = [new MemoryPoint(2, 5000, 1000, null)],
            Shares = [],
        };
        string page = ReportPage.Write(data);
        CheckPage(page, markers: Rounds.Length + Rounds.Length + 2);
        Assert.That(page, Does.Contain("At none of the measured lengths"));
        Assert.That(page, Does.Not.Contain("Share of the ceiling").And.Not.Contain("NaN").And.Not.Contain("Infinity"));
        Assert.That(page, Does.Contain("0.1 µs").And.Contain("300 s"));
    }

    [TestCase("--lengths", "64,48", "ascending")]
    [TestCase("--lengths", "64,x", "integers")]
    [TestCase("--lengths", "48,64", "divisors of the 64 tokens")]
    [TestCase("--out", "/nowhere/page.html", "existing directory")]
    [TestCase("--repeat", "0", "from 1 up")]
    public void BenchReport_WrongOption_SaysWhatWasExpected(string option, string value, string expected)
    {
        ReformerResult result = ReformerProcess.Run("bench", "report", option, value);
        Assert.That(result.ExitCode, Is.EqualTo(2));
        Assert.That(result.Errors, Does.Contain(option).And.Contain(expected));
    }

    /// <summary>One file with nothing from elsewhere; every chart has a text alternative and a table.</summary>
    private static void CheckPage(string text, int markers)
    {
        using var reader = XmlReader.Create(
            new StringReader(text), new XmlReaderSettings { DtdProcessing = DtdProcessing.Ignore });
        XElement page = XDocument.Load(reader).Root!;
        Assert.That(page.Descendants("script"), Is.Empty);
        IEnumerable<XAttribute> links = page.Descendants().Attributes().Where(a => a.Name.LocalName is "src" or "href");
        Assert.That(links.Select(a => a.Value), Is.EqualTo((string[])["data:,"]));
        Assert.That(text, Does.Not.Contain("url(").And.Not.Contain("@import"));

        XElement[] charts = [.. page.Descendants("svg").Where(svg => (string?)svg.Attribute("role") == "img")];
        Assert.That(charts, Is.Not.Empty);
        foreach (XElement chart in charts)
        {
            string name = (string)chart.Attribute("aria-labelledby")!;
            Assert.That(page.Descendants().Where(e => (string?)e.Attribute("id") == name).Single().Value, Is.Not.Empty);
            XElement? table = chart.Ancestors("figure").Single().ElementsAfterSelf().First().Element("table");
            Assert.That(table?.Descendants("td"), Is.Not.Null.And.Not.Empty);
        }

        Assert.That(
            charts
                .SelectMany(chart => chart.Descendants("g"))
                .Count(g => ((string?)g.Attribute("transform"))?.StartsWith("translate") == true),
            Is.EqualTo(markers),
            "a marker for each value"
        );
    }
}
