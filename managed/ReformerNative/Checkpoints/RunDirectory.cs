using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;
using Microsoft.Win32.SafeHandles;
using ReformerNative.Interop;

namespace ReformerNative.Checkpoints;

/// <summary>
/// The right to write to a run's directory, which one process at a time has. It is a lock on a file, which the system
/// releases however the process ends. Dispose gives it back.
/// </summary>
internal sealed partial class RunDirectory : IDisposable
{
    private const string WritingPrefix = ".writing-";
    private const string RemovingPrefix = ".removing-";
    private const int MaximumOwnerBytes = 256;

    private readonly FileStream _owner;

    private RunDirectory(string path, FileStream owner)
    {
        Path = path;
        _owner = owner;
    }

    /// <summary>The directory.</summary>
    public string Path { get; }

    /// <summary>
    /// Takes a directory, which is made when it does not exist, and removes what dead processes left.
    /// </summary>
    /// <param name="path">The directory.</param>
    /// <exception cref="IOException">Another process, which the message names, has it, or it cannot be written
    /// to.</exception>
    public static RunDirectory Claim(string path)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        Directory.CreateDirectory(path);
        string name = System.IO.Path.Combine(path, CheckpointFiles.Owner);
        FileStream owner;
        try
        {
            owner = new FileStream(name, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None);
        }
        catch (IOException error) when (IsLocked(error))
        {
            throw new IOException(
                $"{path}: expected a run that no process works on, found it in use by {OwnerIn(name)}; "
                    + "wait for its end or choose another directory",
                error);
        }

        try
        {
            owner.SetLength(0);
            owner.Write(Encoding.UTF8.GetBytes(string.Create(
                CultureInfo.InvariantCulture, $"process {Environment.ProcessId} on {Environment.MachineName}\n")));
            owner.Flush();
            Clean(path);
            return new RunDirectory(path, owner);
        }
        catch
        {
            owner.Dispose();
            throw;
        }
    }

    /// <summary>
    /// Makes the first directory of name-1, name-2, ... that nobody has made before, also when several processes do so
    /// at once.
    /// </summary>
    /// <param name="folder">The folder of runs.</param>
    /// <param name="name">How the names begin.</param>
    /// <returns>The directory, which is to be claimed.</returns>
    public static string MakeNew(string folder, string name)
    {
        for (int number = 1; ; number++)
        {
            string path = System.IO.Path.Combine(
                folder, string.Create(CultureInfo.InvariantCulture, $"{name}-{number}"));
            if (Directory.Exists(path) || File.Exists(path))
            {
                continue;
            }

            Directory.CreateDirectory(path);
            string owner = System.IO.Path.Combine(path, CheckpointFiles.Owner);
            try
            {
                // Making a directory does not tell who made it; making a file does.
                new FileStream(owner, FileMode.CreateNew, FileAccess.Write, FileShare.ReadWrite).Dispose();
                return path;
            }
            catch (IOException) when (File.Exists(owner))
            {
            }
        }
    }

    /// <summary>Adds a checkpoint; when it is on the disk, the oldest ones are removed.</summary>
    /// <param name="step">The step.</param>
    /// <param name="keep">How many checkpoints stay at most, this one included; 0 for all.</param>
    /// <param name="write">Writes the files into the directory it is given.</param>
    /// <returns>The directory of the checkpoint.</returns>
    public string Add(long step, int keep, Action<string> write)
    {
        string name = FreeName(Path, step);
        string writing = System.IO.Path.Combine(Path, WritingPrefix + name);
        Directory.CreateDirectory(writing);
        string place = System.IO.Path.Combine(Path, name);
        try
        {
            write(writing);
            SystemCalls.SyncDirectory(writing);
            Directory.Move(writing, place);
        }
        catch
        {
            TryDelete(writing); // a full disk needs the room
            throw;
        }

        SystemCalls.SyncDirectory(Path);
        IReadOnlyList<(string Path, long Step)> all = CheckpointStore.List(Path);
        for (int i = 0; keep > 0 && i < all.Count - keep; i++)
        {
            // Renamed first, so that a kill in the middle leaves no half checkpoint under a whole one's name.
            string removing = System.IO.Path.Combine(Path, RemovingPrefix + System.IO.Path.GetFileName(all[i].Path));
            Directory.Move(all[i].Path, removing);
            Directory.Delete(removing, recursive: true);
        }

        return place;
    }

    /// <summary>Lets other processes have the directory.</summary>
    public void Dispose() => _owner.Dispose();

    /// <summary>
    /// Removes what processes left that were killed in the middle of a change. Nobody else works here.
    /// </summary>
    private static void Clean(string path)
    {
        foreach (string directory in Directory.EnumerateDirectories(path))
        {
            if (Unfinished().IsMatch(System.IO.Path.GetFileName(directory)))
            {
                Directory.Delete(directory, recursive: true);
            }
        }

        foreach (string file in Directory.EnumerateFiles(path))
        {
            if (AtomicFile.IsTemporary(System.IO.Path.GetFileName(file)))
            {
                File.Delete(file);
            }
        }
    }

    /// <summary>A step that is already there gets a second name: replacing a directory is not one step.</summary>
    private static string FreeName(string directory, long step)
    {
        string name = string.Create(CultureInfo.InvariantCulture, $"step-{step:00000000}");
        for (int again = 1; Directory.Exists(System.IO.Path.Combine(directory, name)); again++)
        {
            name = string.Create(CultureInfo.InvariantCulture, $"step-{step:00000000}.{again}");
        }

        return name;
    }

    private static void TryDelete(string directory)
    {
        try
        {
            Directory.Delete(directory, recursive: true);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            // The next claim removes it.
        }
    }

    /// <summary>Whether opening failed because another process holds the lock (EWOULDBLOCK, by system).</summary>
    private static bool IsLocked(IOException error) =>
        error.HResult
        == (OperatingSystem.IsWindows() ? unchecked((int)0x80070020) : OperatingSystem.IsLinux() ? 11 : 35);

    /// <summary>What the owner wrote, read past its lock.</summary>
    private static string OwnerIn(string path)
    {
        try
        {
            using SafeFileHandle file = SystemCalls.OpenUnlocked(path);
            var bytes = new byte[MaximumOwnerBytes];
            int count = RandomAccess.Read(file, bytes, 0);
            string owner = Encoding.UTF8.GetString(bytes, 0, count).Trim();
            return owner.Length > 0 ? owner : "another process";
        }
        catch (IOException)
        {
            return "another process";
        }
    }

    [GeneratedRegex(@"^\.(writing|removing)-step-\d{8,18}(\.\d{1,9})?$", RegexOptions.CultureInvariant)]
    private static partial Regex Unfinished();
}
