using Microsoft.Extensions.Logging;
using ReformerNative.Checkpoints;
using ReformerNative.Tensors;

namespace ReformerNative.Training;

/// <summary>
/// The checkpoints of one run: where they go, which step was saved last, and the right to write to the run's directory.
/// </summary>
internal sealed class RunCheckpoints : IDisposable
{
    private readonly RunDirectory? _run; // the right to write to the checkpoint directory
    private readonly int _keep;
    private readonly ILogger _logger;
    private long _lastTry; // step of the last attempt to save; there is nothing new to save at it

    /// <summary>Claims the run's directory, if the options name one.</summary>
    /// <param name="options">Where checkpoints go, and how many stay.</param>
    /// <param name="logger">Is told what was saved.</param>
    /// <exception cref="IOException">Another process works in the directory, or it cannot be written to.</exception>
    public RunCheckpoints(TrainingOptions options, ILogger logger)
    {
        _run = options.CheckpointDirectory is { } directory ? RunDirectory.Claim(directory) : null;
        _keep = options.KeepCheckpoints;
        _logger = logger;
    }

    /// <summary>The newest checkpoint that was written here or that the run began with; null when there is
    /// none.</summary>
    public string? Last { get; private set; }

    /// <summary>Begins with a checkpoint that is there already.</summary>
    /// <param name="step">Its step.</param>
    /// <param name="checkpoint">Its directory.</param>
    public void Continue(long step, string checkpoint)
    {
        _lastTry = step;
        Last = checkpoint;
    }

    /// <summary>Whether there is a directory for checkpoints and something that it lacks.</summary>
    /// <param name="step">Steps done.</param>
    /// <returns>True when a step since the last attempt to save was done.</returns>
    public bool HasNews(long step) => _run is not null && step > _lastTry;

    /// <summary>Writes a checkpoint and removes those that are too many.</summary>
    /// <param name="directory">The directory of checkpoints; that of the run or another.</param>
    /// <param name="step">Steps done.</param>
    /// <param name="write">Writes the files of a checkpoint into the directory it is given.</param>
    /// <returns>Directory of the checkpoint.</returns>
    /// <exception cref="TrainingDivergedException">A parameter is not finite; nothing was written.</exception>
    /// <exception cref="IOException">The disk did not take it; the older checkpoints are still there.</exception>
    public string Save(string directory, long step, Action<string> write)
    {
        _lastTry = step;
        try
        {
            Last = _run?.Path == directory
                ? _run.Add(step, _keep, write)
                : CheckpointStore.Add(directory, step, _keep, write);
        }
        catch (NotFiniteNumberException error)
        {
            throw new TrainingDivergedException(step, error);
        }

        TrainerLog.Saved(_logger, step, Last);
        return Last;
    }

    /// <summary>
    /// Saves the steps done when a run fails, so that the failure costs none of them. What stopped the run is what is
    /// told: a failure to save beside it is logged alone.
    /// </summary>
    /// <param name="step">Steps done.</param>
    /// <param name="write">Writes the files of a checkpoint into the directory it is given.</param>
    public void SaveAfterFailure(long step, Action<string> write)
    {
        if (!HasNews(step))
        {
            return;
        }

        try
        {
            Save(_run!.Path, step, write);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException or OutOfMemoryException
            or TrainingDivergedException or ReformerNativeException)
        {
            TrainerLog.NotSaved(_logger, step, error.Message);
        }
    }

    /// <summary>Lets other processes have the directory.</summary>
    public void Dispose() => _run?.Dispose();
}
