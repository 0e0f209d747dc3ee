using System.Text.Json;
using ReformerNative.Model;
using ReformerNative.Ops;

namespace ReformerNative.Tests.Cli;

/// <summary><c>reformer train</c>, <c>evaluate</c>, <c>generate</c> and <c>convert</c> on small models.</summary>
public sealed class TrainCommandTests
{
    [Test]
    public void Train_ThreeSteps_PrintsTheContractsFields()
    {
        using var directory = new TemporaryDirectory();
        ReformerResult result = Train(directory, "run", "--steps", "3", "--log-every", "1", "--json");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement[] lines = result.Lines;
        Assert.That(lines, Has.Length.EqualTo(4));
        foreach ((JsonElement line, int i) in lines[..3].Select((line, i) => (line, i)))
        {
            string[] fields = ["step", "loss", "bits_per_byte", "tokens_per_second", "peak_bytes"];
            Assert.That(CliInputs.Names(line), Is.EqualTo(i == 0 ? [.. fields, "seconds_to_first_step"] : fields));
            Assert.That(line.GetProperty("step").GetInt64(), Is.EqualTo(i + 1));
            Assert.That(
                line.GetProperty("bits_per_byte").GetDouble(),
                Is.EqualTo(line.GetProperty("loss").GetDouble() / Math.Log(2)).Within(1e-9));
            Assert.That(line.GetProperty("tokens_per_second").GetDouble(), Is.Positive);
            Assert.That(line.GetProperty("peak_bytes").GetInt64(), Is.GreaterThan(1 << 20));
        }

        double tokens = lines[0].GetProperty("tokens_per_second").GetDouble();
        Assert.That(
            lines[0].GetProperty("seconds_to_first_step").GetDouble(), Is.GreaterThan(2 * 48 / tokens),
            "the step and what came before it");
        string checkpoint = lines[3].GetProperty("checkpoint").GetString()!;
        Assert.That(File.Exists(Path.Combine(checkpoint, "model.safetensors")), Is.True);
        Assert.That(lines[3].GetProperty("heldout_bits_per_byte").GetDouble(), Is.InRange(4, 9));
    }

    [Test]
    public void Train_Resumed_HasTheBitsOfAnUninterruptedRun()
    {
        using var directory = new TemporaryDirectory();
        ReformerResult whole = Train(directory, "whole", "--steps", "4", "--schedule", "constant", "--warmup", "1");
        ReformerResult half = Train(directory, "half", "--steps", "2", "--schedule", "constant", "--warmup", "1");
        ReformerResult rest = ReformerProcess.Run(
            "train", "--resume", directory.File("half"), "--steps", "4", "--threads", "2", "--sample", "0");
        Assert.That(
            (whole.ExitCode, half.ExitCode, rest.ExitCode), Is.EqualTo((0, 0, 0)),
            whole.Errors + half.Errors + rest.Errors);
        foreach (string file in (string[])["model.safetensors", "optimizer.safetensors"])
        {
            byte[] expected = File.ReadAllBytes(Path.Combine(directory.File("whole"), "step-00000004", file));
            byte[] found = File.ReadAllBytes(Path.Combine(directory.File("half"), "step-00000004", file));
            Assert.That(found.AsSpan().SequenceEqual(expected), Is.True, file);
        }
    }

    /// <summary>
    /// Memory is a matter of the machine at hand: no part of the run, and without a trace in its bits.
    /// </summary>
    [Test]
    public void Train_ResumedWithOtherMemory_HasTheBitsOfAnUninterruptedRun()
    {
        using var directory = new TemporaryDirectory();
        ReformerResult whole = Train(
            directory, "whole", "--steps", "4", "--schedule", "constant", "--warmup", "1", "--memory", "free");
        ReformerResult half = Train(directory, "half", "--steps", "2", "--schedule", "constant", "--warmup", "1");
        ReformerResult rest = ReformerProcess.Run(
            "train", "--resume", directory.File("half"), "--steps", "4", "--threads", "2", "--sample", "0", "--memory",
            "4GB");
        Assert.That(
            (whole.ExitCode, half.ExitCode, rest.ExitCode), Is.EqualTo((0, 0, 0)),
            whole.Errors + half.Errors + rest.Errors);
        Assert.That(whole.Output, Does.Contain("layers keep all of"));
        Assert.That(half.Output, Does.Not.Contain("layers keep"));
        foreach (string file in (string[])["model.safetensors", "optimizer.safetensors", "trainer.json"])
        {
            byte[] expected = File.ReadAllBytes(Path.Combine(directory.File("whole"), "step-00000004", file));
            byte[] found = File.ReadAllBytes(Path.Combine(directory.File("half"), "step-00000004", file));
            Assert.That(found.AsSpan().SequenceEqual(expected), Is.True, file);
        }
    }

    [TestCase("INT")]
    [TestCase("TERM")]
    public void Train_Signalled_SavesAndStops(string signal)
    {
        using var directory = new TemporaryDirectory();
        using ReformerProcess process = Start(directory, "run", "--steps", "1000000", "--log-every", "1", "--json");
        string? first = process.ReadLine();
        Assert.That(first, Does.Contain("\"step\":1"));
        process.Signal(signal);
        ReformerResult result = process.Finish();
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        JsonElement last = result.Lines[^1];
        Assert.That(last.GetProperty("completed").GetBoolean(), Is.False);
        Assert.That(double.IsFinite(last.GetProperty("heldout_bits_per_byte").GetDouble()), Is.True);
        ReformerResult resumed = ReformerProcess.Run(
            "train", "--resume", directory.File("run"), "--steps", "1", "--json", "--threads", "1");
        Assert.That(resumed.ExitCode, Is.Zero, resumed.Errors);
        Assert.That(
            resumed.Lines[^1].GetProperty("checkpoint").GetString(),
            Is.EqualTo(last.GetProperty("checkpoint").GetString()));
    }

    [Test]
    public void Train_IntoUsedDirectory_IsRefused()
    {
        using var directory = new TemporaryDirectory();
        Assert.That(Train(directory, "run", "--steps", "1").ExitCode, Is.Zero);
        byte[] before = File.ReadAllBytes(Path.Combine(directory.File("run"), "step-00000001", "model.safetensors"));
        ReformerResult again = Train(directory, "run", "--steps", "1", "--seed", "7");
        Assert.That(again.ExitCode, Is.EqualTo(1));
        Assert.That(again.Errors, Does.Contain("resume it or choose another directory"));
        Assert.That(
            File.ReadAllBytes(Path.Combine(directory.File("run"), "step-00000001", "model.safetensors")),
            Is.EqualTo(before));
    }

    [Test]
    public void Checkpoint_EvaluatedGeneratedConverted_Works()
    {
        using var directory = new TemporaryDirectory();
        ReformerResult trained = Train(directory, "run", "--steps", "2", "--json");
        Assert.That(trained.ExitCode, Is.Zero, trained.Errors);
        double heldOut = trained.Lines[^1].GetProperty("heldout_bits_per_byte").GetDouble();

        ReformerResult evaluated = ReformerProcess.Run(
            "evaluate", directory.File("run"), "--rounds", "2,4,full", "--json", "--threads", "1");
        Assert.That(evaluated.ExitCode, Is.Zero, evaluated.Errors);
        double[] bits = [.. evaluated.Lines.Select(line => line.GetProperty("heldout_bits_per_byte").GetDouble())];
        Assert.That(bits, Has.Length.EqualTo(3).And.All.InRange(4, 9));
        Assert.That(bits[0], Is.EqualTo(heldOut), "the same batches, rotations and rounds as at the end of the run");
        Assert.That(bits[1], Is.Not.EqualTo(bits[0]));

        string[] generate =
        [
            "generate", directory.File("run"), "--prompt", "line 1", "--count", "5", "--seed", "3", "--json",
            "--threads", "1",
        ];
        ReformerResult generated = ReformerProcess.Run(generate);
        Assert.That(generated.ExitCode, Is.Zero, generated.Errors);
        string ids = generated.Lines.Single().GetProperty("ids").ToString();
        Assert.That(generated.Lines.Single().GetProperty("ids").GetArrayLength(), Is.EqualTo(5));
        Assert.That(
            ReformerProcess.Run(generate).Lines.Single().GetProperty("ids").ToString(), Is.EqualTo(ids),
            "the seed decides");
        foreach (string cache in (string[])["auto", "on", "off"])
        {
            ReformerResult again = ReformerProcess.Run([.. generate, "--cache", cache]);
            Assert.That(
                again.Lines.Single().GetProperty("ids").ToString(), Is.EqualTo(ids),
                $"a strict model with --cache {cache}");
        }


        string converted = directory.File("converted");
        Assert.That(
            ReformerProcess.Run("convert", directory.File("run"), converted, "--residual", "float").ExitCode, Is.Zero);
        byte[] expected = File.ReadAllBytes(Path.Combine(directory.File("run"), "step-00000002", "model.safetensors"));
        Assert.That(File.ReadAllBytes(Path.Combine(converted, "model.safetensors")), Is.EqualTo(expected));
        Assert.That(
            ReformerProcess.Run("convert", directory.File("run"), converted).ExitCode, Is.EqualTo(1),
            "it does not overwrite");
    }

    [Test]
    public void AutoLayers_TrainedAtOneLengthAndUsedAtOthers_AreLogged()
    {
        using var directory = new TemporaryDirectory();
        ReformerConfig config = ReformerConfig.Load(CliInputs.WriteConfig(directory)) with
        {
            AttnLayers = [AttentionKind.Auto, AttentionKind.Local],
        };
        config.Save(directory.File("auto.json"));
        long crossover = AttentionCost.Crossover(config)!.Value;
        string run = directory.File("run");
        string[] data =
        [
            "--data",
            CliInputs.WriteText(directory),
            "--length",
            $"{crossover}",
            "--batch",
            "1",
            "--threads",
            "1",
        ];
        ReformerResult trained = ReformerProcess.Run([
            "train",
            "--config",
            directory.File("auto.json"),
            "--steps",
            "1",
            "--out",
            run,
            "--sample",
            "0",
            .. data,
        ]);
        Assert.That(trained.ExitCode, Is.Zero, trained.Errors);
        Assert.That(trained.Output, Does.Contain("2 layers (auto local; auto is lsh;"));
        Assert.That(File.ReadAllText(Path.Combine(run, "step-00000001", "config.json")), Does.Contain("\"auto\""));

        ReformerResult evaluated = ReformerProcess.Run(
            "evaluate", run, "--length", $"{crossover - 1}", "--json", "--threads", "1");
        Assert.That(evaluated.ExitCode, Is.Zero, evaluated.Errors);
        Assert.That(evaluated.Lines, Has.Length.EqualTo(1));
        Assert.That(evaluated.Errors, Does.Contain($"auto layers are Full at {crossover - 1} tokens"));
        ReformerResult generated = ReformerProcess.Run(
            "generate", run, "--prompt", "line", "--count", "2", "--json", "--threads", "1");
        Assert.That(generated.ExitCode, Is.Zero, generated.Errors);
        Assert.That(generated.Errors, Does.Contain("auto layers are Full at "));
    }

    /// <summary>
    /// The duplication task at length 128: one layer of width 256 with four hash rounds copies a sequence, and also
    /// when evaluated with more rounds than it was trained with.
    /// </summary>
    [Test]
    public void Train_DuplicationOfLength128_IsLearnt()
    {
        using var directory = new TemporaryDirectory();
        string run = directory.File("run");
        ReformerResult trained = ReformerProcess.Run(
            "train", "--task", "duplicate", "--length", "128", "--rounds", "4", "--batch", "32", "--steps", "200",
            "--out", run, "--json");
        Assert.That(trained.ExitCode, Is.Zero, trained.Errors);
        ReformerResult evaluated = ReformerProcess.Run("evaluate", run, "--rounds", "4,8", "--batches", "8", "--json");
        Assert.That(evaluated.ExitCode, Is.Zero, evaluated.Errors);
        foreach (JsonElement line in evaluated.Lines)
        {
            Assert.That(line.GetProperty("tokens").GetInt64(), Is.EqualTo(8 * 32 * 63));
            Assert.That(line.GetProperty("heldout_accuracy").GetDouble(), Is.GreaterThan(0.999), line.ToString());
        }
    }

    private static string[] Arguments(TemporaryDirectory directory, string name, string[] more) =>
        [
            "train",
            "--config",
            CliInputs.WriteConfig(directory),
            "--data",
            CliInputs.WriteText(directory),
            "--length",
            "48",
            "--batch",
            "2",
            "--out",
            directory.File(name),
            "--threads",
            "1",
            "--sample",
            "0",
            .. more,
        ];

    private static ReformerResult Train(TemporaryDirectory directory, string name, params string[] more) =>
        ReformerProcess.Run(Arguments(directory, name, more));

    private static ReformerProcess Start(TemporaryDirectory directory, string name, params string[] more) =>
        ReformerProcess.Start(Arguments(directory, name, more));
}
