using System.Text.Json;
using ReformerNative.Checkpoints;

namespace ReformerNative.Tests.Cli;

/// <summary><c>reformer verify</c> on directories of vectors.</summary>
public sealed class VerifyCommandTests
{
    private static readonly string[] Inputs =
    [
        "input_ids", "attention_mask", "labels", "qk", "v", "grad_out", "input_mask", "rotations",
    ];

    private static string Model => Repository.PathOf("tests", "vectors", "hf", "mlm-padded");

    private static string Attention => Repository.PathOf("tests", "vectors", "lucidrains", "causal-4hash-nodup");

    [Test]
    public void Verify_BothKinds_PassesAndNamesEveryTensor()
    {
        ReformerResult result = ReformerProcess.Run("verify", Model, Attention, "--json", "--threads", "1");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement[] cases = result.Lines;
        Assert.That(
            cases.Select(item => item.GetProperty("case").GetString()),
            Is.EqualTo((string[])["mlm-padded", "causal-4hash-nodup"]));
        foreach ((JsonElement item, string directory) in cases.Zip([Model, Attention]))
        {
            Assert.That(item.GetProperty("passed").GetBoolean(), Is.True);
            JsonElement[] tensors = [.. item.GetProperty("tensors").EnumerateArray()];
            Assert.That(
                tensors,
                Has.All.Matches<JsonElement>(tensor =>
                    CliInputs.Names(tensor).SequenceEqual(["name", "relative", "limit", "passed"])
                    && tensor.GetProperty("passed").GetBoolean()
                )
            );
            using SafetensorsReader io = SafetensorsReader.Open(Path.Combine(directory, "io.safetensors"));
            IEnumerable<string> expected = io.Entries.Select(entry => entry.Name)
                .Where(name => !name.StartsWith("f64.", StringComparison.Ordinal) && !Inputs.Contains(name));
            Assert.That(tensors.Select(tensor => tensor.GetProperty("name").GetString()), Is.EquivalentTo(expected));
        }
    }

    [Test]
    public void Verify_TinyLimits_Fails()
    {
        ReformerResult result = ReformerProcess.Run(
            "verify", Model, "--limit-scale", "1e-6", "--json", "--threads", "1");
        Assert.That(result.ExitCode, Is.EqualTo(1), result.Errors);
        JsonElement item = result.Lines.Single();
        Assert.That(item.GetProperty("passed").GetBoolean(), Is.False);
        JsonElement logits = item.GetProperty("tensors")
            .EnumerateArray()
            .Single(tensor => tensor.GetProperty("name").GetString() == "logits");
        Assert.That(logits.GetProperty("passed").GetBoolean(), Is.False);
        Assert.That(logits.GetProperty("limit").GetDouble(), Is.EqualTo(1e-11).Within(1e-20));
    }

    [Test]
    public void Verify_Write_DumpsWhatWasComputed()
    {
        using var directory = new TemporaryDirectory();
        string file = directory.File("ours.safetensors");
        ReformerResult result = ReformerProcess.Run("verify", Attention, "--write", file, "--threads", "1");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        using SafetensorsReader ours = SafetensorsReader.Open(file);
        using SafetensorsReader io = SafetensorsReader.Open(Path.Combine(Attention, "io.safetensors"));
        Assert.That(ours.Get("out").Shape, Is.EqualTo(io.Get("out").Shape));
        Assert.That(ours.ReadIntegers("buckets"), Is.EqualTo(io.ReadIntegers("buckets")));
    }

    [Test]
    public void Verify_WrongWeights_Fails()
    {
        using var directory = new TemporaryDirectory();
        string copy = CliInputs.CopyDirectory(Model, directory.File("case"));
        string weights = Path.Combine(copy, "model.safetensors");
        byte[] bytes = File.ReadAllBytes(weights);
        using (SafetensorsReader file = SafetensorsReader.Open(weights))
        {
            // One value of one parameter, by an eighth.
            bytes[file.Get("reformer.encoder.layer_norm.weight").Offset + 2] ^= 0x10;
        }

        File.WriteAllBytes(weights, bytes);
        ReformerResult result = ReformerProcess.Run("verify", copy, "--json", "--threads", "1");
        Assert.That(result.ExitCode, Is.EqualTo(1), result.Errors);
        Assert.That(result.Lines.Single().GetProperty("passed").GetBoolean(), Is.False);
    }

    [TestCase("io.safetensors")]
    [TestCase("model.safetensors")]
    [TestCase("config.json")]
    public void Verify_TruncatedFile_NamesItAndVerifiesTheOthers(string file)
    {
        using var directory = new TemporaryDirectory();
        string copy = CliInputs.CopyDirectory(Model, directory.File("case"));
        CliInputs.Truncate(Path.Combine(copy, file), 200);
        ReformerResult result = ReformerProcess.Run("verify", copy, Attention, "--json", "--threads", "1");
        Assert.That(result.ExitCode, Is.EqualTo(1));
        Assert.That(result.Errors, Does.Contain(file).And.Contain("expected"));
        Assert.That(result.Errors, Does.Not.Contain("   at "), "no stack trace");
        Assert.That(
            result.Lines.Select(item => item.GetProperty("passed").GetBoolean()), Is.EqualTo((bool[])[false, true]));
    }
}
