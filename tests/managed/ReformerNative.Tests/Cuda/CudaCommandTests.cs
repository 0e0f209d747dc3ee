using System.Text.Json;
using ReformerNative.Tests.Cli;

namespace ReformerNative.Tests.Cuda;

/// <summary>The command on the CUDA backend.</summary>
public sealed class CudaCommandTests
{
    private const string Name = "cuda-on-host";

    public static IEnumerable<string> Directories() =>
        new[] { "hf", "lucidrains" }
            .SelectMany(origin => Directory.EnumerateDirectories(Repository.PathOf("tests", "vectors", origin)))
            .Select(path => Path.GetRelativePath(Repository.PathOf("tests", "vectors"), path))
            .Order(StringComparer.Ordinal);

    [TestCaseSource(nameof(Directories))]
    public void Verify_Vectors_PassesWithTheLimitsOfTheCpu(string directory)
    {
        CudaOnHost.Require();
        ReformerResult result = ReformerProcess.Run(
            "verify", Repository.PathOf("tests", "vectors", directory), "--device", Name, "--json");
        Assert.That(result.ExitCode, Is.Zero, result.Errors + result.Output);
        JsonElement item = result.Lines.Single();
        Assert.That(item.GetProperty("tensors").GetArrayLength(), Is.Positive);
        TestContext.Out.WriteLine(
            item.GetProperty("tensors")
                .EnumerateArray()
                .Where(tensor => tensor.GetProperty("limit").GetDouble() > 0)
                .Select(tensor =>
                    (
                        Part: tensor.GetProperty("relative").GetDouble() / tensor.GetProperty("limit").GetDouble(),
                        Tensor: tensor
                    )
                )
                .MaxBy(pair => pair.Part)
                .ToString()
        );
    }

    /// <summary>Rounded products: other limits, and every tensor is still held to one.</summary>
    [Test]
    public void Verify_OtherPrecisions_PassesWithLimitsOfTheirOwn([Values("tf32", "bf16", "f16")] string precision)
    {
        CudaOnHost.Require();
        string[] directories = [.. Directories().Select(path => Repository.PathOf("tests", "vectors", path))];
        ReformerResult result = ReformerProcess.Run([
            "verify",
            .. directories,
            "--device",
            Name,
            "--precision",
            precision,
            "--json",
        ]);
        Assert.That(result.ExitCode, Is.Zero, result.Errors + result.Output);
        Assert.That(result.Lines, Has.Length.EqualTo(directories.Length));
        IEnumerable<JsonElement> outputs = result.Lines.SelectMany(item => item.GetProperty("tensors").EnumerateArray())
            .Where(tensor => tensor.GetProperty("name").GetString() is "logits" or "out");
        Assert.That(
            outputs.Select(tensor => tensor.GetProperty("relative").GetDouble()), Has.All.GreaterThan(1e-5),
            "the precision is in use");
    }

    [Test]
    public void Train_AFewSteps_SavesResumesEvaluatesAndGenerates()
    {
        CudaOnHost.Require();
        using var directory = new TemporaryDirectory();
        string config = CliInputs.WriteConfig(directory);
        string text = CliInputs.WriteText(directory);
        string run = directory.File("run");
        string[] place = ["--device", Name, "--json"];
        ReformerResult train = ReformerProcess.Run([
            "train",
            "--config",
            config,
            "--data",
            text,
            "--length",
            "48",
            "--batch",
            "1",
            "--steps",
            "2",
            "--log-every",
            "1",
            "--evaluation-batches",
            "1",
            "--out",
            run,
            "--sample",
            "0",
            .. place,
        ]);
        Assert.That(train.ExitCode, Is.Zero, train.Errors);
        Assert.That(train.Lines, Has.Length.EqualTo(3));
        Assert.That(
            train.Lines[0].GetProperty("peak_bytes").GetInt64(), Is.InRange(1 << 16, 1 << 24),
            "the device's memory, not the process's");
        Assert.That(train.Lines[^1].GetProperty("heldout_bits_per_byte").GetDouble(), Is.InRange(4, 9));

        ReformerResult resumed = ReformerProcess.Run([
            "train",
            "--resume",
            run,
            "--steps",
            "3",
            "--sample",
            "0",
            .. place,
        ]);
        Assert.That(resumed.ExitCode, Is.Zero, resumed.Errors);
        Assert.That(resumed.Lines[^1].GetProperty("step").GetInt64(), Is.EqualTo(3));

        double bits = resumed.Lines[^1].GetProperty("heldout_bits_per_byte").GetDouble();
        ReformerResult evaluated = ReformerProcess.Run(["evaluate", run, .. place]);
        ReformerResult onCpu = ReformerProcess.Run("evaluate", run, "--json");
        Assert.That((evaluated.ExitCode, onCpu.ExitCode), Is.EqualTo((0, 0)), evaluated.Errors + onCpu.Errors);
        Assert.That(evaluated.Lines.Single().GetProperty("heldout_bits_per_byte").GetDouble(), Is.EqualTo(bits));
        Assert.That(
            onCpu.Lines.Single().GetProperty("heldout_bits_per_byte").GetDouble(), Is.EqualTo(bits).Within(1e-4));

        ReformerResult generated = ReformerProcess.Run(["generate", run, "--prompt", "line", "--count", "4", .. place]);
        Assert.That(generated.ExitCode, Is.Zero, generated.Errors);
        Assert.That(generated.Lines.Single().GetProperty("ids").GetArrayLength(), Is.EqualTo(4));
    }

    /// <summary>
    /// Threads and blocks in other orders, asynchronous copies that land at other times: the same bits.
    /// </summary>
    [Test]
    public void Train_UnderOtherSchedules_EndsWithTheSameBytes([Values("1", "2", "3")] string seed)
    {
        CudaOnHost.Require();
        using var directory = new TemporaryDirectory();
        string config = CliInputs.WriteConfig(directory);
        string text = CliInputs.WriteText(directory);
        byte[] Train(string schedule)
        {
            string run = directory.File($"run-{schedule}");
            ReformerResult result = RunWith(
                "RFN_CUDA_ON_HOST_SEED", schedule, "train", "--config", config, "--data", text, "--length", "40",
                "--batch", "2", "--steps", "2", "--evaluation-batches", "1", "--out", run, "--sample", "0", "--device",
                Name, "--precision", "bf16", "--json");
            Assert.That(result.ExitCode, Is.Zero, result.Errors);
            return File.ReadAllBytes(Path.Combine(run, "step-00000002", "model.safetensors"));
        }

        Assert.That(Train(seed).AsSpan().SequenceEqual(Train("0")), Is.True);
    }

    [TestCase("RFN_CUDA_ON_HOST_MEMORY_BYTES", "1000000", "f32", "free on CUDA device 0")]
    [TestCase("RFN_CUDA_ON_HOST_CAPABILITY", "75", "bf16", "compute capability 7.5")]
    [TestCase("RFN_CUDA_ON_HOST_CAPABILITY", "61", "f32", "7.0 or later, got 6.1")]
    [TestCase("RFN_CUDA_ON_HOST_DEVICES", "0", "f32", "sees no GPU")]
    public void DeviceThatCannot_SaysSoInASentence(string variable, string value, string precision, string expected)
    {
        CudaOnHost.Require();
        ReformerResult result = RunWith(
            variable, value, "bench", "step", "--layers", "1", "--width", "64", "--length", "256", "--repeat", "1",
            "--device", Name, "--precision", precision);
        Assert.That(result.ExitCode, Is.EqualTo(1), result.Output);
        Assert.That(result.Errors, Does.StartWith("reformer: ").And.Contain(expected).And.Not.Contain("   at "));
    }

    [Test]
    public void BenchStep_RecoversTheStreamsAndTakesWhatThePlanSays()
    {
        CudaOnHost.Require();
        ReformerResult result = ReformerProcess.Run(
            "bench", "step", "--layers", "2", "--width", "32", "--feed-forward", "64", "--heads", "2", "--head-size",
            "16", "--length", "100", "--chunk", "16", "--rounds", "2", "--vocabulary", "64", "--dropout", "0.1",
            "--repeat", "1", "--device", Name, "--json");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement item = result.Lines.Single();
        Assert.That(item.GetProperty("reconstruction").GetProperty("bit_identical").GetBoolean(), Is.True);
        Assert.That(item.GetProperty("sgemm_gflops").ValueKind, Is.EqualTo(JsonValueKind.Null));
        Assert.That(
            item.GetProperty("peak_bytes").GetInt64(),
            Is.EqualTo(item.GetProperty("planned_bytes").GetInt64()).Within(1024));
    }

    [Test]
    public void BenchAttention_Runs()
    {
        CudaOnHost.Require();
        ReformerResult result = ReformerProcess.Run(
            "bench", "attention", "--length", "100", "--heads", "1", "--head-size", "16", "--chunk", "16", "--rounds",
            "1", "--causal", "--repeat", "1", "--device", Name, "--json");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        Assert.That(result.Lines.Single().GetProperty("forward_backward_seconds").GetDouble(), Is.Positive);
    }

    [Test]
    public void PrecisionOfTheCpu_OtherThanF32_IsRefusedWithASentence()
    {
        ReformerResult result = ReformerProcess.Run("bench", "attention", "--length", "10", "--precision", "bf16");
        Assert.That(result.ExitCode, Is.EqualTo(1));
        Assert.That(result.Errors, Does.Contain("precision").And.Contain("CPU").And.Not.Contain("   at "));
    }

    [TestCase("--precision", "f8", "f32, tf32, bf16, f16")]
    [TestCase("--device", "gpu", "cpu, cuda, cuda:N or cuda-on-host")]
    public void WrongWords_AreWrongUsage(string option, string word, string expected)
    {
        ReformerResult result = ReformerProcess.Run("bench", "attention", "--length", "10", option, word);
        Assert.That(result.ExitCode, Is.EqualTo(2));
        Assert.That(result.Errors, Does.Contain(option).And.Contain(expected).And.Contain($"'{word}'"));
    }

    /// <summary>
    /// Where there is no GPU, or no plug-in, the sentence of the failure is the one that info prints.
    /// </summary>
    [Test]
    public void CudaThatIsNotThere_IsExplained()
    {
        JsonElement info = ReformerProcess.Run("info", "--json").Lines.Single();
        int gpus = info.GetProperty("devices")
            .EnumerateArray()
            .Count(item => item.GetProperty("type").GetString() == "cuda");
        ReformerResult result = ReformerProcess.Run(
            "bench", "attention", "--length", "10", "--repeat", "1", "--device", "cuda");
        if (gpus > 0)
        {
            Assert.That(result.ExitCode, Is.Zero, result.Errors);
            return;
        }

        Assert.That(result.ExitCode, Is.EqualTo(1));
        Assert.That(result.Errors, Does.StartWith("reformer: CUDA is not available").And.Not.Contain("   at "));
        Assert.That(result.Errors, Does.Contain(info.GetProperty("cuda").GetString()));
    }

    /// <summary>Runs the command with one more variable in its environment.</summary>
    private static ReformerResult RunWith(string variable, string value, params string[] arguments)
    {
        string? before = Environment.GetEnvironmentVariable(variable);
        Environment.SetEnvironmentVariable(variable, value);
        try
        {
            return ReformerProcess.Run(arguments);
        }
        finally
        {
            Environment.SetEnvironmentVariable(variable, before);
        }
    }
}
