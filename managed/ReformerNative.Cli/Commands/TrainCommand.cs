using System.CommandLine;
using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Cli.Commands;

/// <summary><c>reformer train</c>.</summary>
internal static class TrainCommand
{
    private const string RunsFolder = "runs";

    public static Command Create()
    {
        var command = new Command(
            "train",
            "Train a model; without options, a small byte-level one on the API documentation that the .NET SDK ships. "
                + "Ctrl+C saves and stops."
        );
        foreach (Option option in TrainArguments.All)
        {
            command.Add(option);
        }

        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult parsed)
    {
        string? resume = parsed.GetValue(TrainArguments.Resume);
        if (resume is not null && RunDescription.IsIn(resume))
        {
            RunDirectory.Claim(resume).Dispose(); // an owner may remove what would be read here
        }

        string? checkpoint = resume is null ? null : CheckpointStore.Resolve(resume);
        RunDescription run =
            checkpoint is null ? TrainArguments.NewRun(parsed) : TrainArguments.ResumedRun(parsed, checkpoint);
        if (Directory.Exists(run.Options.CheckpointDirectory))
        {
            RunDirectory.Claim(run.Options.CheckpointDirectory).Dispose();
        }

        ReformerConfig? config = checkpoint is null ? TrainArguments.ConfigOf(parsed, run) : null;
        IBatchSource source = run.Data.Open(
            anyBytes: checkpoint is not null || parsed.GetValue(CommonOptions.AnyBytes));
        using var disposable = source as IDisposable;
        if (config is not null && source.VocabularySize > config.VocabSize)
        {
            throw new UsageException(
                $"vocab_size: expected at least the {source.VocabularySize} ids of the data, found {config.VocabSize}");
        }

        ReformerConfig planned = config ?? ReformerConfig.Load(Path.Combine(checkpoint!, CheckpointFiles.Config));
        if (!planned.PredictsNextToken)
        {
            // Text has no labels but its own next tokens: another head would learn to copy what it sees.
            throw new UsageException(
                $"architectures: expected ReformerModelWithLMHead, which learns from text, found {planned.Task}");
        }

        HeldOut.RequireBatches(source, run);
        using ReformerContext context = CommonOptions.Context(parsed);
        bool json = parsed.GetValue(CommonOptions.Json);
        MemoryLimit? limit = CommonOptions.MemoryOf(parsed);
        TrainingOptions options = run.Options;
        PlannedMemory? plan = null;
        if (!json || limit is not null)
        {
            // Without a limit it is for people alone.
            (plan, options) = PlannedMemory.ForTraining(planned, context, options, limit);
        }

        using ReformerModel model = config is not null
            ? ReformerModel.Create(config, context, run.Options.Seed)
            : ReformerModel.Load(checkpoint!, context);
        string directory = options.CheckpointDirectory
            ?? RunDirectory.MakeNew(RunsFolder, run.Data.Task == DataTask.Text ? "text" : "duplicate");
        options = options with { CheckpointDirectory = directory };
        using Trainer trainer = checkpoint is null
            ? new Trainer(model, source, options)
            : Trainer.Resume(model, checkpoint, source, options);
        using var metrics = new MetricsFile(directory, trainer.Step);
        var session = new TrainingSession(
            trainer, source, run, plan, checkpoint, planned.NumBuckets is null ? model.Config.NumBuckets : null,
            metrics, parsed.GetValue(TrainArguments.LogEvery), json);
        return session.Run(parsed.GetValue(TrainArguments.SampleBytes));
    }
}
