namespace ReformerNative.Tests.Cli;

/// <summary>
/// Wrong usage is exit code 2, bad input is 1; both say what was expected and found, and never show a stack trace.
/// </summary>
public sealed class UsageTests
{
    private static readonly string[][] Wrong =
    [
        [],
        ["tarin"],
        ["train", "--stpes", "3"],
        ["train", "--steps", "three"],
        ["train", "--steps", "-1"],
        ["train", "--task", "images"],
        ["train", "--preset", "huge"],
        ["train", "--task", "duplicate", "--length", "100000"],
        ["train", "--task", "duplicate", "--length", "31"],
        ["train", "--held-out", "0", "--evaluate-every", "5"],
        ["train", "--lr", "nan"],
        ["train", "--lr", "0,002"],
        ["train", "--lr", "infinity"],
        ["train", "--length", "1,024"],
        ["train", "--threads", "2,0"],
        ["train", "--seed", "1.0"],
        ["train", "--data", ".", "--out", "../" + Path.GetFileName(Environment.CurrentDirectory)],
        ["generate", "run", "--prompt", "x", "--temperature", "0,8"],
        ["verify", Repository.PathOf("tests", "vectors"), "--limit-scale", "1,5"],
        ["experiment", "duplicate", "--lr", "0,002"],
        ["train", "--task", "duplicate", "--data", "x"],
        ["train", "--device", "tpu"],
        ["train", "--resume", ".", "extra"],
        ["verify"],
        ["verify", Repository.PathOf("tests", "vectors"), "--write", "x"],
        ["bench"],
        ["bench", "step", "--layers", "0"],
        ["bench", "generate", "--tokens", "0"],
        ["generate", "run", "--prompt", "x", "--cache", "maybe"],
        ["bench", "step", "--pattern", "lsh,global"],
        ["bench", "step", "--dropout", "1.5"],
        ["plan", "--preset", "text", "--layers", "3"],
        ["plan", "--memory", "6"],
        ["plan", "--memory", "lots"],
        ["plan", "--memory", "-1GiB"],
        ["plan", "--memory", "1MiB"],
        ["plan", "--memory", "1GiB", "--evaluation"],
        ["bench", "step", "--memory", "1KB"],
        ["train", "--task", "duplicate", "--length", "128", "--memory", "1KB", "--out", "never-made"],
        ["experiment", "duplicate", "--stages", "1024"],
        ["evaluate"],
        ["evaluate", Repository.PathOf("tests", "vectors", "hf", "lm-mixed-axial")],
    ];

    private static readonly string[][] Bad =
    [
        ["train", "--config", "no-such-file.json"],
        ["train", "--data", "no-such-file.txt"],
        ["train", "--resume", "no-such-run"],
        ["verify", "no-such-directory"],
        ["evaluate", "no-such-run"],
        ["generate", "no-such-run", "--prompt", "x"],
        ["convert", "no-such-run", "x"],
        ["plan", "--config", "no-such-file.json"],
    ];

    [TestCaseSource(nameof(Wrong))]
    public void WrongUsage_ExitsWith2(params string[] arguments) => AssertRefused(arguments, 2);

    [TestCaseSource(nameof(Bad))]
    public void BadInput_ExitsWith1AndSaysWhatWasFound(params string[] arguments)
    {
        ReformerResult result = AssertRefused(arguments, 1);
        Assert.That(result.Errors, Does.Contain("expected").And.Contain("found"));
    }

    [TestCase("model.safetensors", 1000)]
    [TestCase("model.safetensors", 4)]
    [TestCase("config.json", 50)]
    [TestCase("optimizer.safetensors", 1000)]
    [TestCase("trainer.json", 20)]
    public void MalformedCheckpoint_ExitsWith1AndNamesTheFile(string file, int bytes)
    {
        using var directory = new TemporaryDirectory();
        string run = directory.File("run");
        ReformerResult trained = ReformerProcess.Run(
            "train", "--config", CliInputs.WriteConfig(directory), "--data", CliInputs.WriteText(directory), "--length",
            "48", "--batch", "1", "--steps", "1", "--out", run, "--threads", "1", "--sample", "0");
        Assert.That(trained.ExitCode, Is.Zero, trained.Errors);
        CliInputs.Truncate(Path.Combine(run, "step-00000001", file), bytes);
        ReformerResult result = AssertRefused(["train", "--resume", run, "--steps", "2", "--threads", "1"], 1);
        Assert.That(result.Errors, Does.Contain(file).And.Contain("expected"));
    }

    [Test]
    public void Help_OfEveryCommand_ExitsWith0()
    {
        string[][] commands =
        [
            [],
            ["train"],
            ["generate"],
            ["evaluate"],
            ["verify"],
            ["bench"],
            ["bench", "attention"],
            ["bench", "step"],
            ["bench", "generate"],
            ["experiment", "duplicate"],
            ["plan"], ["info"], ["convert"],
        ];
        foreach (string[] command in commands)
        {
            ReformerResult result = ReformerProcess.Run([.. command, "--help"]);
            Assert.That(result.ExitCode, Is.Zero, string.Join(' ', command));
            Assert.That(result.Output, Does.Contain("--help"));
        }
    }

    private static ReformerResult AssertRefused(string[] arguments, int code)
    {
        ReformerResult result = ReformerProcess.Run(arguments);
        Assert.That(result.ExitCode, Is.EqualTo(code), result.Errors);
        Assert.That(result.Errors, Does.StartWith("reformer: "));
        Assert.That(result.Errors, Does.Not.Contain("   at ").And.Not.Contain("Exception"));
        Assert.That(result.Output, Is.Empty);
        return result;
    }
}
