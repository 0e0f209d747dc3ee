using System.Diagnostics;
using System.Globalization;
using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Tests.Training;

/// <summary>
/// A process that trains and saves without pause is killed at random moments; whatever it said it had saved must be
/// there.
/// </summary>
public sealed class KillTests
{
    internal const string ChildTask = "train-forever";

    private const int Kills = 8;

    private static readonly TrainingOptions Options = TrainerTests.Options with
    {
        Steps = 1_000_000,
        CheckpointEvery = 1,
        EvaluateEvery = 0,
        KeepCheckpoints = 2,
    };

    [Test]
    public void ProcessKilledWhileSaving_LosesNothing()
    {
        const int seed = 42;
        var random = new Random(seed);
        using var run = new TemporaryDirectory();
        long reached = 0;
        int interrupted = 0;
        for (int kill = 0; kill < Kills; kill++)
        {
            long said = KillAfter(run.Path, random.Next(0, 60), out int partial);
            interrupted += partial;
            string checkpoint = CheckpointStore.Resolve(run.Path);
            using var context = new ReformerContext(threads: 1);
            using ReformerModel model = ReformerModel.Load(checkpoint, context);
            using Trainer trainer = Trainer.Resume(model, checkpoint, new DuplicationTask(31));
            Assert.That(
                trainer.Step, Is.GreaterThanOrEqualTo(said).And.GreaterThan(reached), $"seed {seed}, kill {kill}");
            foreach ((string path, long _) in CheckpointStore.List(run.Path))
            {
                using ReformerModel other = ReformerModel.Load(path, context);
                Trainer.Resume(other, path, new DuplicationTask(31)).Dispose();
            }

            reached = trainer.Step;
        }

        TestContext.Out.WriteLine(
            $"{reached} steps saved, {interrupted} of {Kills} kills left a checkpoint half written");
    }

    /// <summary>What the child does: goes on from the newest checkpoint and saves every step.</summary>
    internal static void TrainForever(string directory)
    {
        using var context = new ReformerContext(threads: 1);
        TrainingOptions options = Options with { CheckpointDirectory = directory };
        var task = new DuplicationTask(31);
        bool resume = CheckpointStore.List(directory).Count > 0;
        string from = resume ? CheckpointStore.Resolve(directory) : "";
        using ReformerModel model = resume
            ? ReformerModel.Load(from, context)
            : ReformerModel.Create(TrainerTests.Config, context, 1);
        using Trainer trainer = resume ? Trainer.Resume(model, from, task, options) : new Trainer(model, task, options);
        trainer.Run(new Printer());
    }

    private static long KillAfter(string directory, int milliseconds, out int partial)
    {
        string assembly = typeof(KillTests).Assembly.Location;
        var start = new ProcessStartInfo("dotnet", ["exec", assembly, ChildTask, directory])
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        using Process child = Process.Start(start)!;
        Task<string> errors = child.StandardError.ReadToEndAsync();
        long said = Read(child.StandardOutput.ReadLine(), errors);
        Thread.Sleep(milliseconds);
        child.Kill();
        child.WaitForExit();
        partial = Directory.EnumerateDirectories(directory, ".*").Any() ? 1 : 0;
        while (child.StandardOutput.ReadLine() is { } line)
        {
            said = long.TryParse(line, CultureInfo.InvariantCulture, out long step) ? step : said;
        }

        return said;
    }

    private static long Read(string? line, Task<string> errors) => line is not null
        ? long.Parse(line, CultureInfo.InvariantCulture)
        : throw new AssertionException($"the child ended: {errors.GetAwaiter().GetResult()}");

    private sealed class Printer : IProgress<TrainingStep>
    {
        public void Report(TrainingStep value)
        {
            Console.Out.WriteLine(value.Step.ToString(CultureInfo.InvariantCulture));
            Console.Out.Flush();
        }
    }
}
