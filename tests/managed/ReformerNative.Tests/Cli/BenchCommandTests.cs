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
            "bench", "attention", "--length", "200", "--heads", "2", "--head-size", "16", "--chunk", "16", "--rounds",
            "2", "--repeat", "1", option, "--json");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement item = result.Lines.Single();
        Assert.That(
            CliInputs.Names(item),
            Is.EqualTo(
                (string[])
                    [
                        "forward_seconds",
                        "forward_backward_seconds",
                        "flops_forward",
                        "flops_backward",
                        "sgemm_gflops",
                        "peak_bytes",
                    ]
            )
        );
        double pairs = option == "--dense" ? 200.0 * 200 : 200.0 * 2 * 32;
        Assert.That(item.GetProperty("flops_forward").GetDouble(), Is.EqualTo(4 * 2 * 16 * pairs));
        Assert.That(item.GetProperty("flops_backward").GetDouble(), Is.EqualTo(10 * 2 * 16 * pairs));
        double forward = item.GetProperty("forward_seconds").GetDouble();
        Assert.That(item.GetProperty("forward_backward_seconds").GetDouble(), Is.GreaterThan(forward));
        Assert.That(item.GetProperty("sgemm_gflops").GetDouble(), Is.Positive);
    }

    [Test]
    public void BenchGenerate_Json_HasTheContractsFields()
    {
        ReformerResult result = ReformerProcess.Run(
            "bench", "generate", "--layers", "2", "--width", "64", "--feed-forward", "96", "--heads", "2",
            "--head-size", "16", "--chunk", "16", "--rounds", "2", "--length", "100", "--tokens", "5", "--json");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement item = result.Lines.Single();
        Assert.That(
            CliInputs.Names(item),
            Is.EqualTo(
                (string[])
                    [
                        "prefill_tokens_per_second",
                        "early_position",
                        "early_seconds_per_token",
                        "late_position",
                        "late_seconds_per_token",
                        "tokens_per_second",
                        "weight_bytes",
                        "read_bytes_per_second",
                        "read_share",
                        "peak_bytes",
                    ]
            )
        );
        double Value(string name) => item.GetProperty(name).GetDouble();
        Assert.That(
            (Value("early_position"), Value("late_position")), Is.EqualTo((100, 100)),
            "a prompt shorter than the short one is that one");

        // Layers: norms 4·64, LSH 3·32·64 or local 4·32·64, feed-forward 2·64·96 + 64 + 96;
        // head 2·128, 258·129;
        // embeddings 258·64, 11·16, 10·48.
        long parameters =
            (2 * ((4 * 64) + (2 * 64 * 96) + 64 + 96))
            + (7 * 32 * 64)
            + 256
            + (258 * 129)
            + (258 * 64)
            + (11 * 16)
            + (10 * 48);
        Assert.That(Value("weight_bytes"), Is.EqualTo(4 * parameters));
        Assert.That(Value("tokens_per_second"), Is.EqualTo(1 / Value("late_seconds_per_token")).Within(1e-9).Percent);
        double reading = Value("weight_bytes") / Value("read_bytes_per_second");
        Assert.That(Value("read_share"), Is.EqualTo(reading / Value("late_seconds_per_token")).Within(1e-9).Percent);
        Assert.That(Value("prefill_tokens_per_second"), Is.Positive);
    }

    /// <summary>
    /// Memory grows with depth by parameters, gradients and optimizer alone, and the plan says so beforehand.
    /// </summary>
    [Test]
    public void BenchStep_TwoAndTwelveLayers_TakeWhatThePlanSays()
    {
        long[] peaks = new long[2];
        foreach ((int layers, int i) in new[] { 2, 12 }.Select((layers, i) => (layers, i)))
        {
            string[] sizes =
            [
                "--layers",
                $"{layers}",
                "--width",
                $"{Width}",
                "--feed-forward",
                $"{FeedForward}",
                "--heads",
                "4",
                "--head-size",
                "64",
                "--length",
                "4096",
                "--chunk",
                "64",
                "--rounds",
                "2",
                "--vocabulary",
                "258",
                "--pattern",
                "lsh,local",
                "--dropout",
                "0.1",
            ];
            ReformerResult result = ReformerProcess.Run(["bench", "step", .. sizes, "--repeat", "1", "--json"]);
            Assert.That(result.ExitCode, Is.Zero, result.Errors);
            JsonElement item = result.Lines.Single();
            Assert.That(
                CliInputs.Names(item),
                Is.EqualTo(
                    (string[])
                        [
                            "seconds", "tokens_per_second", "flops", "sgemm_gflops", "peak_bytes", "planned_bytes",
                            "kept", "reconstruction",
                        ]
                )
            );
            Assert.That(Kept(item), Is.EqualTo((layers, 0, 0)));
            Assert.That(item.GetProperty("reconstruction").GetProperty("bit_identical").GetBoolean(), Is.True);
            Assert.That(item.GetProperty("reconstruction").GetProperty("max_abs").GetDouble(), Is.Zero);
            peaks[i] = item.GetProperty("peak_bytes").GetInt64();
            Assert.That(item.GetProperty("planned_bytes").GetInt64(), Is.EqualTo(peaks[i]).Within(10).Percent);

            ReformerResult plan = ReformerProcess.Run(["plan", .. sizes, "--json"]);
            Assert.That(plan.ExitCode, Is.Zero, plan.Errors);
            JsonElement found = plan.Lines.Single();
            long planned = found.GetProperty("planned_bytes").GetInt64();
            Assert.That(planned, Is.EqualTo(peaks[i]).Within(10).Percent);
            Assert.That(
                found.GetProperty("buffers").EnumerateArray().Sum(entry => entry.GetProperty("bytes").GetInt64()),
                Is.EqualTo(planned));
        }

        // Ten layers more: 5 of each kind; values, gradients and two moments of four bytes each.
        const long layer = (2L * Width * FeedForward) + FeedForward + Width + (4 * Width);
        const long parameters = (10 * layer) + (5L * (3 + 4) * Width * Width);
        Assert.That((double)(peaks[1] - peaks[0]), Is.EqualTo(16.0 * parameters).Within(0.05 * peaks[0]));
    }

    /// <summary>More memory than without, as the plan says, fewer operations, the same streams.</summary>
    [Test]
    public void BenchStep_WithMemory_KeepsActivationsWithinIt()
    {
        string[] sizes =
        [
            "--layers",
            "4",
            "--width",
            $"{Width}",
            "--feed-forward",
            $"{FeedForward}",
            "--heads",
            "4",
            "--head-size",
            "64",
            "--length",
            "4096",
            "--chunk",
            "64",
            "--rounds",
            "2",
            "--vocabulary",
            "258",
            "--dropout",
            "0.1",
        ];
        ReformerResult result = ReformerProcess.Run(["plan", .. sizes, "--memory", "1.5 GiB", "--json"]);
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement plan = result.Lines.Single();
        JsonElement[] trade = [.. plan.GetProperty("trade").EnumerateArray()];
        Assert.That(
            trade.Select(item => item.GetProperty("keep").GetString()),
            Is.EqualTo((string[])["nothing", "streams", "all", "asked"]));
        Assert.That(trade.Select(Kept), Is.EqualTo(((int, int, int)[])[(4, 0, 0), (0, 4, 0), (0, 0, 4), (0, 0, 4)]));
        Assert.That(trade.Select(item => item.GetProperty("planned_bytes").GetInt64()), Is.Ordered);
        Assert.That(
            trade[3].GetProperty("planned_bytes").GetInt64(), Is.EqualTo(plan.GetProperty("planned_bytes").GetInt64()));

        // A token's products of a layer, in multiplications and additions: q, v (and k), W1; the output and W2.
        // Attention: 2 pairs of 2 D.
        const double inner = 256, head = 3 * 2 * 4096.0 * 2 * Width * 258;
        const double first = 4096 * 2.0 * Width * ((2 * 2 * inner) + (2 * 3 * inner) + (4 * FeedForward));
        const double second = 4096 * 2.0 * Width * 4 * (inner + FeedForward);
        const double attention = 4 * inner * 4096 * 2 * ((2 * 128) + 128);
        double[] flops = [.. trade.Select(item => item.GetProperty("flops").GetDouble())];
        Assert.That(flops[0], Is.EqualTo(head + (4 * (first + second)) + (4.5 * attention)));
        Assert.That(flops[1], Is.EqualTo(flops[0] - second));
        Assert.That(flops[2], Is.EqualTo(flops[1] - first - attention));
        Assert.That(trade[2].GetProperty("relative_flops").GetDouble(), Is.EqualTo(flops[2] / flops[0]));

        // Between the streams and everything.
        long limit =
            (trade[1].GetProperty("planned_bytes").GetInt64() + trade[2].GetProperty("planned_bytes").GetInt64()) / 2;
        result = ReformerProcess.Run(["bench", "step", .. sizes, "--repeat", "1", "--memory", $"{limit}B", "--json"]);
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement found = result.Lines.Single();
        Assert.That(Kept(found).Nothing, Is.Zero);
        Assert.That(Kept(found).Streams, Is.Positive);
        Assert.That(Kept(found).All, Is.Positive);
        Assert.That(found.GetProperty("flops").GetDouble(), Is.GreaterThan(flops[2]).And.LessThan(flops[1]));
        Assert.That(found.GetProperty("reconstruction").GetProperty("bit_identical").GetBoolean(), Is.True);
        long planned = found.GetProperty("planned_bytes").GetInt64();
        Assert.That(planned, Is.LessThanOrEqualTo(limit));
        Assert.That(found.GetProperty("peak_bytes").GetInt64(), Is.EqualTo(planned).Within(10).Percent);
    }

    [Test]
    public void Plan_WithWhatIsFree_LeavesAMargin()
    {
        ReformerResult result = ReformerProcess.Run(
            "plan", "--layers", "2", "--length", "512", "--width", "64", "--memory", "free");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        Assert.That(result.Output, Does.Contain("--memory free: all of 2").And.Contain("kept activations"));
    }

    [Test]
    public void BenchStep_FloatResidual_ReportsItsDrift()
    {
        ReformerResult result = ReformerProcess.Run(
            "bench", "step", "--layers", "4", "--width", "64", "--feed-forward", "64", "--heads", "2", "--head-size",
            "32", "--length", "100", "--chunk", "16", "--rounds", "1", "--residual", "float", "--repeat", "1",
            "--json");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement reconstruction = result.Lines.Single().GetProperty("reconstruction");
        Assert.That(reconstruction.GetProperty("bit_identical").GetBoolean(), Is.False);
        Assert.That(reconstruction.GetProperty("max_abs").GetDouble(), Is.InRange(1e-9, 1e-4));
    }

    private static (int Nothing, int Streams, int All) Kept(JsonElement item)
    {
        JsonElement kept = item.GetProperty("kept");
        return (
            kept.GetProperty("nothing").GetInt32(), kept.GetProperty("streams").GetInt32(),
            kept.GetProperty("all").GetInt32());
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
        Assert.That(
            crossovers.GetProperty("8").GetInt64(), Is.EqualTo(plan.GetProperty("lsh_crossover").GetInt64()),
            "the default shape");
    }

    [Test]
    public void Plan_OfAutoLayers_SaysWhatTheyAreAtTheLength()
    {
        string[] sizes = ["plan", "--pattern", "auto,local,full", "--layers", "4", "--rounds", "1"];
        long crossover = ReformerProcess
            .Run([.. sizes, "--json"])
            .Lines.Single()
            .GetProperty("lsh_crossover")
            .GetInt64();
        foreach ((long length, string form) in new[] { (crossover - 1, "full"), (crossover, "lsh") })
        {
            ReformerResult json = ReformerProcess.Run([.. sizes, "--length", $"{length}", "--json"]);
            Assert.That(json.ExitCode, Is.Zero, json.Errors);
            JsonElement item = json.Lines.Single();
            Assert.That(item.GetProperty("lsh_crossover").GetInt64(), Is.EqualTo(crossover));
            Assert.That(
                item.GetProperty("layers").EnumerateArray().Select(layer => layer.GetString()),
                Is.EqualTo((string[])[form, "local", "full", form]));
            ReformerResult text = ReformerProcess.Run([.. sizes, "--length", $"{length}"]);
            Assert.That(
                text.Output,
                Does.Contain($"from {crossover} tokens on")
                    .And.Contain($"layer 0: auto is {form} at {length} tokens")
                    .And.Contain($"layer 3: auto is {form}")
                    .And.Not.Contain("layer 1:")
            );
        }
    }

    /// <summary>The floating point operations counted are those of the form that the layers take.</summary>
    [Test]
    public void BenchStep_OfAutoLayers_RunsTheirForm()
    {
        string[] sizes =
        [
            "bench", "step", "--layers", "2", "--width", "32", "--feed-forward", "32", "--heads", "2", "--head-size",
            "16", "--chunk", "8", "--rounds", "1", "--repeat", "1", "--json",
        ];
        double Flops(string pattern, int length)
        {
            ReformerResult result = ReformerProcess.Run([.. sizes, "--pattern", pattern, "--length", $"{length}"]);
            Assert.That(result.ExitCode, Is.Zero, result.Errors);
            Assert.That(
                result.Lines.Single().GetProperty("reconstruction").GetProperty("bit_identical").GetBoolean(), Is.True);
            return result.Lines.Single().GetProperty("flops").GetDouble();
        }

        Assert.That(Flops("auto", 400), Is.EqualTo(Flops("lsh", 400)));
        Assert.That(
            Flops("auto", 15), Is.EqualTo(Flops("full", 15) - (2 * 8.0 * 15 * 32 * 32)),
            "one projection less in each layer");
    }
}
