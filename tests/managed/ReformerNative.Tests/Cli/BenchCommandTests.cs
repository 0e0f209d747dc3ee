using System.Text.Json;

namespace ReformerNative.Tests.Cli;

/// <summary><c>reformer bench</c>, <c>plan</c> and <c>info</c>.</summary>
public sealed class BenchCommandTests
{
    private const int Width = 256;
    private const int FeedForward = 512;

    [TestCase("--dense")]
    [TestCase("--causal")]
    public void BenchAttention_Json_HasTheContractsFields(string option)
    {
        ReformerResult result = ReformerProcess.Run(
            "bench", "attention", "--length", "200", "--heads", "2", "--head-size", "16", "--chunk", "16", "--rounds", "2", "--repeat", "1",
            option, "--json");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement item = result.Lines.Single();
        Assert.That(CliInputs.Names(item), Is.EqualTo((string[])[
            "forward_seconds", "forward_backward_seconds", "flops_forward", "flops_backward", "sgemm_gflops", "peak_bytes",
        ]));
        double pairs = option == "--dense" ? 200.0 * 200 : 200.0 * 2 * 32;
        Assert.That(item.GetProperty("flops_forward").GetDouble(), Is.EqualTo(4 * 2 * 16 * pairs));
        Assert.That(item.GetProperty("flops_backward").GetDouble(), Is.EqualTo(10 * 2 * 16 * pairs));
        double forward = item.GetProperty("forward_seconds").GetDouble();
        Assert.That(item.GetProperty("forward_backward_seconds").GetDouble(), Is.GreaterThan(forward));
        Assert.That(item.GetProperty("sgemm_gflops").GetDouble(), Is.Positive);
    }

    /// <summary>Memory grows with depth by parameters, gradients and optimizer alone, and the plan says so beforehand.</summary>
    [Test]
    public void BenchStep_TwoAndTwelveLayers_TakeWhatThePlanSays()
    {
        long[] peaks = new long[2];
        foreach ((int layers, int i) in new[] { 2, 12 }.Select((layers, i) => (layers, i)))
        {
            string[] sizes =
            [
                "--layers", $"{layers}", "--width", $"{Width}", "--feed-forward", $"{FeedForward}", "--heads", "4", "--head-size", "64",
                "--length", "4096", "--chunk", "64", "--rounds", "2", "--vocabulary", "258", "--pattern", "lsh,local", "--dropout", "0.1",
            ];
            ReformerResult result = ReformerProcess.Run(["bench", "step", .. sizes, "--repeat", "1", "--json"]);
            Assert.That(result.ExitCode, Is.Zero, result.Errors);
            JsonElement item = result.Lines.Single();
            Assert.That(CliInputs.Names(item), Is.EqualTo((string[])[
                "seconds", "tokens_per_second", "flops", "sgemm_gflops", "peak_bytes", "planned_bytes", "reconstruction",
            ]));
            Assert.That(item.GetProperty("reconstruction").GetProperty("bit_identical").GetBoolean(), Is.True);
            Assert.That(item.GetProperty("reconstruction").GetProperty("max_abs").GetDouble(), Is.Zero);
            peaks[i] = item.GetProperty("peak_bytes").GetInt64();
            Assert.That(item.GetProperty("planned_bytes").GetInt64(), Is.EqualTo(peaks[i]).Within(10).Percent);

            ReformerResult plan = ReformerProcess.Run(["plan", .. sizes, "--json"]);
            Assert.That(plan.ExitCode, Is.Zero, plan.Errors);
            JsonElement found = plan.Lines.Single();
            long planned = found.GetProperty("planned_bytes").GetInt64();
            Assert.That(planned, Is.EqualTo(peaks[i]).Within(10).Percent);
            Assert.That(found.GetProperty("buffers").EnumerateArray().Sum(entry => entry.GetProperty("bytes").GetInt64()), Is.EqualTo(planned));
        }

        // Ten layers more: 5 of each kind; values, gradients and two moments of four bytes each.
        const long layer = (2L * Width * FeedForward) + FeedForward + Width + (4 * Width);
        const long parameters = (10 * layer) + (5L * (3 + 4) * Width * Width);
        Assert.That((double)(peaks[1] - peaks[0]), Is.EqualTo(16.0 * parameters).Within(0.05 * peaks[0]));
    }

    [Test]
    public void BenchStep_FloatResidual_ReportsItsDrift()
    {
        ReformerResult result = ReformerProcess.Run(
            "bench", "step", "--layers", "4", "--width", "64", "--feed-forward", "64", "--heads", "2", "--head-size", "32", "--length", "100",
            "--chunk", "16", "--rounds", "1", "--residual", "float", "--repeat", "1", "--json");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement reconstruction = result.Lines.Single().GetProperty("reconstruction");
        Assert.That(reconstruction.GetProperty("bit_identical").GetBoolean(), Is.False);
        Assert.That(reconstruction.GetProperty("max_abs").GetDouble(), Is.InRange(1e-9, 1e-4));
    }

    [Test]
    public void Info_Json_NamesVersionAndDevices()
    {
        ReformerResult result = ReformerProcess.Run("info", "--json");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement item = result.Lines.Single();
        Assert.That(item.GetProperty("version").GetString(), Is.Not.Empty);
        Assert.That(item.GetProperty("native").GetProperty("simd").GetString(), Is.Not.Empty);
        Assert.That(item.GetProperty("devices")[0].GetProperty("device").GetString(), Is.EqualTo("cpu"));
        JsonElement crossovers = item.GetProperty("lsh_crossover_by_rounds");
        Assert.That(CliInputs.Names(crossovers), Is.EqualTo((string[])["1", "2", "4", "8"]));
        JsonElement plan = ReformerProcess.Run("plan", "--rounds", "8", "--json").Lines.Single();
        Assert.That(crossovers.GetProperty("8").GetInt64(), Is.EqualTo(plan.GetProperty("lsh_crossover").GetInt64()), "the default shape");
    }

    [Test]
    public void Plan_OfAutoLayers_SaysWhatTheyAreAtTheLength()
    {
        string[] sizes = ["plan", "--pattern", "auto,local,full", "--layers", "4", "--rounds", "1"];
        long crossover = ReformerProcess.Run([.. sizes, "--json"]).Lines.Single().GetProperty("lsh_crossover").GetInt64();
        foreach ((long length, string form) in new[] { (crossover - 1, "full"), (crossover, "lsh") })
        {
            ReformerResult json = ReformerProcess.Run([.. sizes, "--length", $"{length}", "--json"]);
            Assert.That(json.ExitCode, Is.Zero, json.Errors);
            JsonElement item = json.Lines.Single();
            Assert.That(item.GetProperty("lsh_crossover").GetInt64(), Is.EqualTo(crossover));
            Assert.That(
                item.GetProperty("layers").EnumerateArray().Select(layer => layer.GetString()), Is.EqualTo((string[])[form, "local", "full", form]));
            ReformerResult text = ReformerProcess.Run([.. sizes, "--length", $"{length}"]);
            Assert.That(text.Output, Does.Contain($"from {crossover} tokens on").And.Contain($"layer 0: auto is {form} at {length} tokens")
                .And.Contain($"layer 3: auto is {form}").And.Not.Contain("layer 1:"));
        }
    }

    /// <summary>The floating point operations counted are those of the form that the layers take.</summary>
    [Test]
    public void BenchStep_OfAutoLayers_RunsTheirForm()
    {
        string[] sizes =
        [
            "bench", "step", "--layers", "2", "--width", "32", "--feed-forward", "32", "--heads", "2", "--head-size", "16", "--chunk", "8",
            "--rounds", "1", "--repeat", "1", "--json",
        ];
        double Flops(string pattern, int length)
        {
            ReformerResult result = ReformerProcess.Run([.. sizes, "--pattern", pattern, "--length", $"{length}"]);
            Assert.That(result.ExitCode, Is.Zero, result.Errors);
            Assert.That(result.Lines.Single().GetProperty("reconstruction").GetProperty("bit_identical").GetBoolean(), Is.True);
            return result.Lines.Single().GetProperty("flops").GetDouble();
        }

        Assert.That(Flops("auto", 400), Is.EqualTo(Flops("lsh", 400)));
        Assert.That(Flops("auto", 15), Is.EqualTo(Flops("full", 15) - (2 * 8.0 * 15 * 32 * 32)), "one projection less in each layer");
    }
}
