using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;

namespace ReformerNative.Training;

/// <summary>What must hold before the first step of a run, so that no work is lost for it later.</summary>
internal static class RunChecks
{
    /// <summary>The data fits the model, and gives each kind of batch that the run will ask for.</summary>
    public static void RequireData(
        IBatchSource source, ReformerConfig config, TrainingOptions options, TokenBatch batch)
    {
        if (source.VocabularySize > config.VocabSize)
        {
            throw new ArgumentException(
                $"data: expected at most the {config.VocabSize} ids of the model, found {source.VocabularySize}",
                nameof(source));
        }

        source.Fill(batch, DataSplit.Train, options.Seed, 0);
        if (options.EvaluateEvery > 0)
        {
            source.Fill(batch, DataSplit.HeldOut, options.Seed, 0);
        }
    }

    /// <summary>A resumed run has the data and the options that it began with.</summary>
    public static void RequireSameRun(TrainerState state, IBatchSource source, TrainingOptions options)
    {
        if (state.Data != source.Identity)
        {
            throw new ArgumentException(
                $"data: expected that of the run, {state.Data}, found {source.Identity}", nameof(source));
        }

        TrainingOptions expected = state.Options.WithIntervalsOf(options);
        if (expected != options)
        {
            throw new ArgumentException(
                $"options: expected those of the run, {expected}, found {options}", nameof(options));
        }
    }

    /// <summary>A new run needs a directory without checkpoints, a resumed one without later ones.</summary>
    /// <param name="directory">The claimed directory; null for a run without one.</param>
    /// <param name="resumedStep">The step that a resumed run goes on from; null for a new run.</param>
    public static void RequireNewest(string? directory, long? resumedStep)
    {
        if (directory is null
            || CheckpointStore.List(directory) is not [.., var newest]
            || newest.Step <= resumedStep)
        {
            return;
        }

        throw new InvalidOperationException(
            resumedStep is long step
                ? $"{directory}: expected no checkpoint after step {step}, found {newest.Path}; "
                    + "resume that or choose another directory"
                : $"{directory}: expected no checkpoints for a new run, found {newest.Path}; "
                    + "resume it or choose another directory");
    }
}
