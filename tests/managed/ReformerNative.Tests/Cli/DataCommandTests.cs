using System.Text.Json.Nodes;
using ReformerNative.Model;

namespace ReformerNative.Tests.Cli;

/// <summary>What the command makes of paths, texts and configurations that are not the usual ones.</summary>
public sealed class DataCommandTests
{
    [Test]
    public void CheckpointPath_WithASeparatorOrByALink_MeansTheSameRun()
    {
        using var directory = new TemporaryDirectory();
        string run = TrainRun(directory);
        string checkpoint = Path.Combine(run, "step-00000002");
        Directory.CreateSymbolicLink(directory.File("best"), checkpoint);
        string expected = Succeed("evaluate", checkpoint, "--json", "--threads", "1").Output;
        foreach (string path in (string[])[run, run + "/", checkpoint + "/", checkpoint + "//", directory.File("best")])
        {
            Assert.That(Succeed("evaluate", path, "--json", "--threads", "1").Output, Is.EqualTo(expected), path);
        }

        Succeed("train", "--resume", checkpoint + "/", "--steps", "3", "--sample", "0", "--threads", "1");
        Assert.That(Directory.Exists(Path.Combine(run, "step-00000003")), Is.True);
    }

    [Test]
    public void Evaluate_OfACheckpointWithoutARun_AsksForData()
    {
        using var directory = new TemporaryDirectory();
        string copy = CliInputs.CopyDirectory(
            Path.Combine(TrainRun(directory), "step-00000002"), directory.File("copy"));
        string[] arguments = ["evaluate", copy, "--length", "48", "--batch", "1", "--batches", "1", "--threads", "1"];
        Refuse(2, arguments, "--data: expected ");
        Refuse(2, [.. arguments, "--task", "text"], "--data: expected ");
        Succeed([.. arguments, "--data", CliInputs.WriteText(directory)]);
    }

    [Test]
    public void Train_OnThePlaceOfItsRuns_TakesNoRunForText()
    {
        using var directory = new TemporaryDirectory();
        string config = CliInputs.WriteConfig(directory);
        CliInputs.WriteText(directory);
        string first = TrainOn(directory.Path, config, directory.File("runs/text-1"));
        string second = TrainOn(directory.Path, config, directory.File("runs/text-2"));
        Assert.That(DataOf(second), Is.EqualTo(DataOf(first)));
        Succeed("train", "--resume", first, "--steps", "3", "--sample", "0", "--threads", "1");
    }

    [Test]
    public void Train_OnAPipe_HasTheBitsOfTheFile()
    {
        using var directory = new TemporaryDirectory();
        string config = CliInputs.WriteConfig(directory);
        string text = CliInputs.WriteText(directory);
        string ofFile = TrainOn(text, config, directory.File("file"));
        string program = Path.Combine(AppContext.BaseDirectory, "reformer.dll");
        (int code, _, string errors) = Repository.Run(
            "bash", "-c",
            $"dotnet '{program}' train --config '{config}' --data <(cat '{text}') --length 48 "
                + $"--batch 1 --steps 2 --sample 0 --threads 1 --evaluate-every 0 --out '{directory.File("pipe")}'");
        Assert.That(code, Is.Zero, errors);
        byte[] expected = File.ReadAllBytes(Path.Combine(ofFile, "step-00000002", "model.safetensors"));
        byte[] found = File.ReadAllBytes(Path.Combine(directory.File("pipe"), "step-00000002", "model.safetensors"));
        Assert.That(found.AsSpan().SequenceEqual(expected), Is.True);
    }

    [Test]
    public void Train_WithDataCutShort_SavesAndSaysWhich()
    {
        using var directory = new TemporaryDirectory();
        string text = CliInputs.WriteText(directory);
        byte[] whole = File.ReadAllBytes(text);
        string run = directory.File("run");
        using ReformerProcess process = ReformerProcess.Start(
            "train", "--config", CliInputs.WriteConfig(directory), "--data", text, "--length", "48", "--batch", "1",
            "--steps", "1000000", "--schedule", "constant", "--evaluate-every", "0", "--checkpoint-every", "0", "--out",
            run, "--threads", "1", "--log-every", "1", "--json");
        Assert.That(process.ReadLine(), Does.Contain("\"step\":1"));
        Assert.That(Repository.Run("truncate", "--size=10", text).ExitCode, Is.Zero);
        ReformerResult result = process.Finish();
        Assert.That(result.ExitCode, Is.EqualTo(1), result.Errors);
        Assert.That(result.Errors, Does.Contain(text).And.Contain("found 10").And.Contain("saved at step"));
        Assert.That(result.Errors, Does.Not.Contain("   at "));
        File.WriteAllBytes(text, whole);
        long step = ReformerNative.Checkpoints.CheckpointStore.List(run).Single().Step;
        Succeed("train", "--resume", run, "--steps", $"{step + 1}", "--sample", "0", "--threads", "1");
    }

    [Test]
    public void Resume_WithOtherContentOfTheSameSize_IsRefused()
    {
        using var directory = new TemporaryDirectory();
        string run = TrainRun(directory);
        byte[] bytes = File.ReadAllBytes(directory.File("text.txt"));
        bytes[bytes.Length / 2] ^= 1;
        File.WriteAllBytes(directory.File("text.txt"), bytes);
        Refuse(1, ["train", "--resume", run, "--steps", "3", "--threads", "1"], "data: expected that of the run");
    }

    [Test]
    public void Train_OnFilesThatAreNoText_IsRefusedUnlessAskedFor()
    {
        using var directory = new TemporaryDirectory();
        Directory.CreateDirectory(directory.File("data"));
        File.Copy(CliInputs.WriteText(directory), directory.File("data/a.txt"));
        File.WriteAllBytes(directory.File("data/b.png"), [0x89, .. "PNG\r\n"u8, 0, 0, 0, 13]);
        string[] arguments =
        [
            "train", "--config", CliInputs.WriteConfig(directory), "--data", directory.File("data"), "--length", "48",
            "--batch", "1", "--steps", "1", "--sample", "0", "--threads", "1", "--out", directory.File("run"),
        ];
        Refuse(1, arguments, "b.png: expected text", "1 of 2 files", "--any-bytes");
        Succeed([.. arguments, "--any-bytes"]);
        Succeed("train", "--resume", directory.File("run"), "--steps", "2", "--sample", "0", "--threads", "1");
    }

    [Test]
    public void Argument_ThatIsNotUtf8_IsRefused()
    {
        string program = Path.Combine(AppContext.BaseDirectory, "reformer.dll");
        (int code, string output, string errors) = Repository.Run(
            "bash", "-c", $"dotnet '{program}' generate run --prompt $'caf\\xe9'");
        Assert.That(code, Is.EqualTo(2), errors);
        Assert.That(errors, Does.Contain("expected arguments in UTF-8"));
        Assert.That(output, Is.Empty);
    }

    [Test]
    public void Weights_ThatAreAGitLfsPointer_AreCalledThat()
    {
        using var directory = new TemporaryDirectory();
        CliInputs.WriteConfig(directory);
        File.WriteAllText(
            directory.File("model.safetensors"),
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n");
        string[] arguments = ["generate", directory.Path, "--prompt", "x", "--threads", "1"];
        Refuse(1, arguments, "model.safetensors: expected", "Git LFS");
    }

    [TestCase("""{"architectures": ["ReformerForMaskedLM"], "is_decoder": false}""")]
    [TestCase("""{"architectures": ["ReformerForSequenceClassification"], "num_labels": 3}""")]
    public void Train_OfAModelThatTextDoesNotTeach_IsRefusedBeforeTheFirstStep(string changes)
    {
        using var directory = new TemporaryDirectory();
        string config = CliInputs.WriteConfig(directory);
        JsonObject json = JsonNode.Parse(File.ReadAllText(config))!.AsObject();
        json.Remove("lsh_preset");
        foreach ((string key, JsonNode? value) in JsonNode.Parse(changes)!.AsObject())
        {
            json[key] = value?.DeepClone();
        }

        File.WriteAllText(config, json.ToJsonString());
        Refuse(
            2,
            [
                "train", "--config", config, "--data", CliInputs.WriteText(directory), "--length", "48", "--out",
                directory.File("run"),
            ],
            "architectures: expected ReformerModelWithLMHead");
        Assert.That(Directory.Exists(directory.File("run")), Is.False);
    }

    [Test]
    public void Train_ThatChoosesBuckets_SaysThatTheyStay()
    {
        using var directory = new TemporaryDirectory();
        string config = CliInputs.WriteConfig(directory);
        ReformerResult result = Succeed(
            "train", "--config", config, "--data", CliInputs.WriteText(directory), "--length", "96", "--batch", "1",
            "--steps", "1", "--sample", "0", "--threads", "1", "--out", directory.File("run"));
        Assert.That(result.Output, Does.Contain("num_buckets").And.Contain("chosen for 96 tokens"));
        result = Succeed(
            "train", "--resume", directory.File("run"), "--steps", "2", "--sample", "0", "--threads", "1");
        Assert.That(result.Output, Does.Not.Contain("num_buckets"), "the checkpoint has them");
    }

    [Test]
    public void Generate_OfTheEndToken_Stops()
    {
        using var directory = new TemporaryDirectory();
        string checkpoint = Path.Combine(TrainRun(directory), "step-00000002");
        string[] generate =
            ["generate", checkpoint, "--prompt", "line", "--count", "6", "--seed", "3", "--json", "--threads", "1"];
        int[] ids = Ids(Succeed(generate));
        Assert.That(ids, Has.Length.EqualTo(6));
        string path = Path.Combine(checkpoint, "config.json");
        (ReformerConfig.Load(path) with { EosTokenId = ids[2] }).Save(path);
        int end = Array.IndexOf(ids, ids[2]);
        Assert.That(Ids(Succeed(generate)), Is.EqualTo(ids[..(end + 1)]));

        static int[] Ids(ReformerResult result) =>
            [.. result.Lines.Single().GetProperty("ids").EnumerateArray().Select(id => id.GetInt32())];
    }

    /// <summary>Messages speak of the file, not of our types.</summary>
    [TestCase("\"paths\": [", "\"paths\": 5, \"x\": [", "$.data.paths")]
    [TestCase("\"length\": 48", "\"length\": \"48 tokens\"", "$.options.length")]
    [TestCase("\"data\"", "\"date\"", "'data'")]
    [TestCase("\"task\": \"Text\"", "\"task\": \"text\", \"task\": \"Text\"", "run.json")]
    public void RunJson_WithAnotherForm_IsDescribedWithoutTypes(string before, string after, string said)
    {
        using var directory = new TemporaryDirectory();
        string run = TrainRun(directory);
        string path = Path.Combine(run, "run.json");
        string json = File.ReadAllText(path);
        Assert.That(json, Does.Contain(before));
        File.WriteAllText(path, json.Replace(before, after, StringComparison.Ordinal));
        ReformerResult result = Refuse(1, ["evaluate", run, "--threads", "1"], "run.json: expected ", said);
        Assert.That(result.Errors, Does.Not.Match(@"System\.|ReformerNative\.|`|Path:"));
    }

    /// <summary>A file must not speak to the terminal.</summary>
    [Test]
    public void TensorName_WithControlCharacters_IsPrintedAsTheirNumbers()
    {
        using var directory = new TemporaryDirectory();
        CliInputs.WriteConfig(directory);
        byte[] header =
            """{"\u001b[31mred\u0007\u202e":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"""u8.ToArray();
        File.WriteAllBytes(
            directory.File("model.safetensors"),
            [.. BitConverter.GetBytes((long)header.Length), .. header, 0, 0, 0, 0]);
        ReformerResult result = Refuse(
            1, ["generate", directory.Path, "--prompt", "x", "--threads", "1"], @"'\u001b[31mred\u0007\u202e'");
        Assert.That(result.Errors.Where(c => char.IsControl(c) && c != '\n'), Is.Empty);
    }

    private static string TrainRun(TemporaryDirectory directory) =>
        TrainOn(CliInputs.WriteText(directory), CliInputs.WriteConfig(directory), directory.File("run"));

    private static string TrainOn(string data, string config, string run)
    {
        Succeed(
            "train", "--config", config, "--data", data, "--length", "48", "--batch", "1", "--steps", "2", "--sample",
            "0", "--threads", "1", "--evaluate-every", "0", "--out", run);
        return run;
    }

    private static string DataOf(string run) =>
        JsonNode.Parse(File.ReadAllText(Path.Combine(run, "step-00000002", "trainer.json")))!["data"]!.ToString();

    private static ReformerResult Succeed(params string[] arguments)
    {
        ReformerResult result = ReformerProcess.Run(arguments);
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        return result;
    }

    private static ReformerResult Refuse(int code, string[] arguments, params string[] said)
    {
        ReformerResult result = ReformerProcess.Run(arguments);
        Assert.That(result.ExitCode, Is.EqualTo(code), result.Errors);
        foreach (string words in said)
        {
            Assert.That(result.Errors, Does.Contain(words));
        }

        Assert.That(result.Errors, Does.StartWith("reformer: ").And.Not.Contain("   at "));
        return result;
    }
}
