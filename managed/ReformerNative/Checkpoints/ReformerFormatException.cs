namespace ReformerNative.Checkpoints;

/// <summary>
/// A file does not hold what it should. The message names the file, what was expected and what was found.
/// </summary>
[System.Diagnostics.CodeAnalysis.SuppressMessage(
    "Design", "CA1032", Justification = "The message always names a file.")]
public sealed class ReformerFormatException : FormatException
{
    /// <summary>Creates the exception for a file.</summary>
    /// <param name="path">The file at fault; it starts the message.</param>
    /// <param name="problem">What was expected and what was found.</param>
    public ReformerFormatException(string path, string problem)
        : base($"{path}: {problem}") => Path = path;

    /// <summary>Creates the exception for a file, keeping the error that revealed it.</summary>
    /// <param name="path">The file at fault; it starts the message.</param>
    /// <param name="problem">What was expected and what was found.</param>
    /// <param name="innerException">The error underneath.</param>
    public ReformerFormatException(string path, string problem, Exception innerException)
        : base($"{path}: {problem}", innerException) => Path = path;

    /// <summary>The file (or directory) at fault.</summary>
    public string Path { get; }
}
