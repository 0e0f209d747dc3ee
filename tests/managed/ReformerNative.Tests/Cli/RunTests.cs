using System.Diagnostics;
using System.Text.Json;
using ReformerNative.Checkpoints;

namespace ReformerNative.Tests.Cli;

/// <summary>The directory of a run: who may write to it, what is in it, and what ends a run before or in its
/// steps.</summary>
public sealed class RunTests
{
    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void Make()
    {
        _directory = new TemporaryDirectory();
        ShellRun.WriteInputs(_directory);
    }

    [TearDown]
    public void Remove() => _directory.Dispose();

    [Test]
    public void HeldOutPart_ShorterThanAnExample_IsRefusedBeforeTheFirstStep()
    {
        const string train =
            "$R train --config config.json --data short.txt --length 64 --batch 1 --steps 2 --sample 0 --threads 1";
        ReformerResult refused = ShellRun.Run(_directory, $"head -c 1200 text.txt > short.txt; {train}");
        ShellRun.AssertRefused(refused, "expected at most the 61 ids", "found 64", "--held-out");
        Assert.That(Directory.Exists(_directory.File("runs")), Is.False);
        ReformerResult more = ShellRun.Run(_directory, $"{train} --held-out 0.1 --json");
        Assert.That(more.ExitCode, Is.Zero, more.Errors);
        Assert.That(more.Lines[^1].GetProperty("heldout_bits_per_byte").GetDouble(), Is.InRange(1, 9));
        ReformerResult resumed = ShellRun.Run(_directory, "$R train --resume runs/text-1 --steps 3 --threads 1 --json");
        Assert.That(resumed.ExitCode, Is.Zero, resumed.Errors);
        ReformerResult evaluated = ShellRun.Run(_directory, "$R evaluate runs/text-1 --threads 1 --json");
        Assert.That(
            evaluated.Lines.Single().GetProperty("heldout_bits_per_byte").GetDouble(),
            Is.EqualTo(resumed.Lines[^1].GetProperty("heldout_bits_per_byte").GetDouble()));
        ReformerResult none = ShellRun.Run(_directory, $"{train} --held-out 0 --json");
        Assert.That(none.ExitCode, Is.Zero, none.Errors);
        Assert.That(
            none.Lines[^1].GetProperty("heldout_bits_per_byte").ValueKind, Is.EqualTo(JsonValueKind.Null));
    }

    [Test]
    public void ThreeRuns_StartedAtOnce_TakeThreeDirectories()
    {
        ReformerResult result = ShellRun.Run(
            _directory,
            $"for i in 1 2 3; do $R {ShellRun.Quick.Replace(" --out run", "", StringComparison.Ordinal)} "
                + "--steps 2 --seed $i > $i.log & p=\"$p $!\"; done; for j in $p; do wait $j || exit 1; done");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        string[] runs = [.. Directory.EnumerateDirectories(_directory.File("runs")).Order(StringComparer.Ordinal)];
        Assert.That(runs.Select(Path.GetFileName), Is.EqualTo((string[])["text-1", "text-2", "text-3"]));
        IEnumerable<string> seeds = runs.Select(run => File.ReadAllLines(Path.Combine(run, "run.json"))
            .Single(line => line.Contains("\"seed\"", StringComparison.Ordinal)).Trim());
        Assert.That(seeds, Is.Unique.And.Exactly(3).Items);
        Assert.That(
            runs.Select(run => File.Exists(Path.Combine(run, "step-00000002", "trainer.json"))), Is.All.True);
    }

    [Test]
    public void DirectoryInUse_IsRefusedAndItsOwnerNamed()
    {
        using ReformerProcess owner = ReformerProcess.Start(
            "train", "--config", _directory.File("config.json"), "--data", _directory.File("text.txt"), "--length",
            "48", "--batch", "1", "--steps", "1000000", "--checkpoint-every", "1", "--log-every", "1", "--threads", "1",
            "--out", _directory.File("run"), "--json");
        Assert.That(owner.ReadLine(), Does.Contain("\"step\":1"));
        string process = File.ReadAllText(Path.Combine("/proc", OwnerOf(), "cmdline"));
        Assert.That(process, Does.Contain("reformer.dll"));
        ShellRun.AssertRefused(
            ShellRun.Run(_directory, "$R train --resume run --steps 1000000 --threads 1"),
            $"in use by process {OwnerOf()} on {Environment.MachineName}");
        ShellRun.AssertRefused(ShellRun.Run(_directory, $"$R {ShellRun.Quick} --steps 1"), "in use by process");
        owner.Signal("KILL");
        owner.Finish();
        ReformerResult resumed = ShellRun.Run(
            _directory, "$R train --resume run --steps 1 --threads 1 --sample 0 || $R evaluate run --threads 1");
        Assert.That(resumed.ExitCode, Is.Zero, "a dead owner owns nothing: " + resumed.Errors);

        // The lock keeps others from opening the file in .NET's ways.
        string OwnerOf() =>
            ShellRun.Run(_directory, "cat run/run.lock").Output.Split(' ')[1];
    }

    [Test]
    public void ParametersThatAreNotFinite_AreNotSaved()
    {
        string config = File.ReadAllText(_directory.File("config.json"));
        File.WriteAllText(
            _directory.File("config.json"), config.Replace("\"exact\"", "\"float\"", StringComparison.Ordinal));
        ReformerResult result = ShellRun.Run(
            _directory, $"$R {ShellRun.Quick} --steps 1 --lr 1e39 --clip 0 --warmup 0 --evaluate-every 0");
        ShellRun.AssertRefused(result, "step 1", "expected finite values", "older checkpoints stay");
        Assert.That(CheckpointStore.List(_directory.File("run")), Is.Empty);
        Assert.That(Directory.EnumerateDirectories(_directory.File("run")), Is.Empty);
    }

    [Test]
    public void Signal_DuringAMeasurement_EndsItAndTheStepIsSaved()
    {
        using ReformerProcess process = ReformerProcess.Start(
            "train", "--config", _directory.File("config.json"), "--data", _directory.File("text.txt"), "--length",
            "48", "--batch", "1", "--steps", "5", "--checkpoint-every", "1", "--evaluate-every", "1",
            "--evaluation-batches", "100000000", "--threads", "1", "--out", _directory.File("run"), "--json");
        string checkpoint = _directory.File("run/step-00000001");
        for (var waited = Stopwatch.StartNew(); !Directory.Exists(checkpoint); Thread.Sleep(50))
        {
            Assert.That(waited.Elapsed, Is.LessThan(TimeSpan.FromMinutes(5)), "it is saved before it is measured");
        }

        Thread.Sleep(500);
        process.Signal("TERM");
        ReformerResult result = process.Finish();
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement last = result.Lines[^1];
        Assert.That(last.GetProperty("completed").GetBoolean(), Is.False);
        Assert.That(last.GetProperty("step").GetInt64(), Is.EqualTo(1));
        Assert.That(last.GetProperty("checkpoint").GetString(), Is.EqualTo(checkpoint));
        Assert.That(last.GetProperty("heldout_bits_per_byte").ValueKind, Is.EqualTo(JsonValueKind.Null));
    }

    [Test]
    public void Resume_ThatFailsAtItsFirstStep_LeavesTheDescription()
    {
        string config = File.ReadAllText(_directory.File("config.json"));
        File.WriteAllText(
            _directory.File("config.json"), config.Replace("\"exact\"", "\"float\"", StringComparison.Ordinal));
        ReformerResult first = ShellRun.Run(
            _directory,
            $"$R {ShellRun.Quick} --steps 1 --lr 1e25 --clip 0 --warmup 0 --schedule constant --evaluate-every 0");
        Assert.That(first.ExitCode, Is.Zero, first.Errors);
        string before = File.ReadAllText(_directory.File("run/run.json"));
        ReformerResult second = ShellRun.Run(_directory, "$R train --resume run --steps 9 --threads 1");
        ShellRun.AssertRefused(second, "step 2: expected a finite loss");
        Assert.That(File.ReadAllText(_directory.File("run/run.json")), Is.EqualTo(before));
    }

    [Test]
    public void WhatADeadProcessLeft_IsRemovedAtTheNextStart()
    {
        Assert.That(ShellRun.Run(_directory, $"$R {ShellRun.Quick} --steps 1").ExitCode, Is.Zero);
        string[] left = [".removing-step-00000000", ".writing-step-00000002", ".writing-step-00000002.1"];
        string[] files = ["run.json.4711.tmp", "run.json.0123abcd.tmp", "metrics.jsonl.0123abcd.tmp"];
        string[] foreign = [".removing-notes", "notes"];
        foreach (string name in left.Concat(foreign))
        {
            Directory.CreateDirectory(_directory.File($"run/{name}/inside"));
        }

        foreach (string name in files.Append("notes.tmp"))
        {
            File.WriteAllText(_directory.File($"run/{name}"), "half");
        }

        ReformerResult resumed = ShellRun.Run(_directory, "$R train --resume run --steps 1 --threads 1 --sample 0");
        Assert.That(resumed.ExitCode, Is.Zero, resumed.Errors);
        Assert.That(
            Directory.EnumerateFileSystemEntries(_directory.File("run")).Select(Path.GetFileName),
            Is.EquivalentTo((string[])
                [.. foreign, "notes.tmp", "run.json", "run.lock", "metrics.jsonl", "step-00000001"]));
    }

    [Test]
    public void Metrics_OfARunThatGoesOn_HaveEachLoggedStepOnce()
    {
        ReformerResult first = ShellRun.Run(_directory, $"$R {ShellRun.Quick} --steps 5 --log-every 2");
        Assert.That(first.ExitCode, Is.Zero, first.Errors);
        string path = _directory.File("run/metrics.jsonl");
        JsonElement[] lines = Read();
        Assert.That(Steps(), Is.EqualTo((long[])[2, 4, 5]));
        string[] fields =
        [
            "step", "loss", "bits_per_byte", "accuracy", "learning_rate", "gradient_norm", "tokens",
            "tokens_per_second", "seconds", "peak_bytes",
        ];
        Assert.That(CliInputs.Names(lines[0]), Is.EqualTo(fields));
        Assert.That(
            CliInputs.Names(lines[2]),
            Is.EqualTo((string[])[.. fields, "heldout_loss", "heldout_bits_per_byte", "heldout_accuracy", "checkpoint"])
        );
        Assert.That(lines[2].GetProperty("checkpoint").GetString(), Is.EqualTo("step-00000005"));

        File.AppendAllText(path, "{\"step\": 6, \"loss\": 1}\n{\"step\": 7, \"lo"); // lost work, and half a line
        ReformerResult second = ShellRun.Run(
            _directory, "$R train --resume run --steps 8 --log-every 2 --threads 1 --sample 0");
        Assert.That(second.ExitCode, Is.Zero, second.Errors);
        lines = Read();
        Assert.That(Steps(), Is.EqualTo((long[])[2, 4, 5, 6, 8]));
        Assert.That(CliInputs.Names(lines[3]), Is.EqualTo(fields));

        JsonElement[] Read() =>
            [.. File.ReadLines(path).Select(line => JsonDocument.Parse(line).RootElement)];

        IEnumerable<long> Steps() => lines.Select(line => line.GetProperty("step").GetInt64());
    }

    /// <summary>At a terminal the live line overwrites itself; measurements and checkpoints stay.</summary>
    [Test]
    public void Terminal_KeepsLinesOfMeasurementsAndCheckpoints()
    {
        ReformerResult result = ShellRun.Run(
            _directory,
            $"script -qec \"$R {ShellRun.Quick} --steps 6 --log-every 1 --checkpoint-every 2 --evaluate-every 3\" "
                + "/dev/null < /dev/null");
        Assert.That(result.ExitCode, Is.Zero, result.Output);

        // What a terminal shows at last of each line: a carriage return begins it anew.
        string[] history =
        [
            .. result.Output.Split('\n')
                .Select(line => line.TrimEnd('\r').Split('\r')[^1].Replace("\u001b[K", "", StringComparison.Ordinal)),
        ];
        int Kept(string text) => history.Count(line => line.Contains(text, StringComparison.Ordinal));
        Assert.That((Kept(" bits per byte  "), Kept("   checkpoint "), Kept("   held out ")), Is.EqualTo((4, 3, 2)));
    }
}
