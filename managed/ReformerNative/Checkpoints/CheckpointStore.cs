using System.Globalization;
using System.Text.RegularExpressions;

namespace ReformerNative.Checkpoints;

/// <summary>
/// Checkpoints of a run: one directory <c>step-00000100</c> for each below the run's directory. A checkpoint is written
/// into a directory beside, forced to the disk and then renamed, so at any moment only whole ones have such names. One
/// process at a time writes to a run.
/// </summary>
public static partial class CheckpointStore
{
    /// <summary>All whole checkpoints, oldest first.</summary>
    /// <param name="directory">The run's directory; it need not exist.</param>
    /// <returns>Paths of the checkpoints with their steps.</returns>
    public static IReadOnlyList<(string Path, long Step)> List(string directory)
    {
        ArgumentException.ThrowIfNullOrEmpty(directory);
        if (!Directory.Exists(directory))
        {
            return [];
        }

        return [.. Directory.EnumerateDirectories(directory)
            .Select(path => (Path: path, Match: CheckpointName().Match(Path.GetFileName(path))))
            .Where(item => item.Match.Success)
            .Select(item => (item.Path, Step: Number(item.Match.Groups[1]), Again: Number(item.Match.Groups[2])))
            .OrderBy(item => item.Step).ThenBy(item => item.Again)
            .Select(item => (item.Path, item.Step))];
    }

    /// <summary>
    /// Finds the checkpoint that a path means: itself if it has a <c>config.json</c>, else the newest of a run.
    /// </summary>
    /// <param name="path">A checkpoint or a run's directory.</param>
    /// <returns>The directory of the checkpoint.</returns>
    /// <exception cref="DirectoryNotFoundException">There is no checkpoint there.</exception>
    public static string Resolve(string path)
    {
        path = Path.TrimEndingDirectorySeparator(path); // which a shell's completion adds
        if (File.Exists(Path.Combine(path, CheckpointFiles.Config)))
        {
            return path;
        }

        IReadOnlyList<(string Path, long Step)> all = List(path);
        return all.Count > 0
            ? all[^1].Path
            : throw new DirectoryNotFoundException(
                $"{path}: expected a directory with config.json or with checkpoints step-*, found "
                + (Directory.Exists(path) ? "neither" : File.Exists(path) ? "a file" : "nothing"));
    }

    /// <summary>Adds a checkpoint and removes the oldest ones.</summary>
    /// <param name="directory">The run's directory; it is made when it does not exist.</param>
    /// <param name="step">The step.</param>
    /// <param name="keep">How many checkpoints stay at most, this one included; 0 for all.</param>
    /// <param name="write">Writes the files into the directory it is given.</param>
    /// <returns>The directory of the checkpoint.</returns>
    /// <exception cref="IOException">The disk did not take it, or another process works on the run; the older
    /// checkpoints are still there.</exception>
    public static string Add(string directory, long step, int keep, Action<string> write)
    {
        ArgumentException.ThrowIfNullOrEmpty(directory);
        ArgumentNullException.ThrowIfNull(write);
        ArgumentOutOfRangeException.ThrowIfNegative(step);
        ArgumentOutOfRangeException.ThrowIfNegative(keep);
        using RunDirectory run = RunDirectory.Claim(directory);
        return run.Add(step, keep, write);
    }

    private static long Number(Group group) =>
        group.Success ? long.Parse(group.ValueSpan, CultureInfo.InvariantCulture) : 0;

    [GeneratedRegex(@"^step-(\d{8,18})(?:\.(\d{1,9}))?$", RegexOptions.CultureInvariant)]
    private static partial Regex CheckpointName();
}
