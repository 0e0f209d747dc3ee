using System.Text.Json;
using System.Text.RegularExpressions;

namespace ReformerNative.Checkpoints;

/// <summary>
/// A file does not hold what it should. The message names the file, what was expected and what was found.
/// </summary>
[System.Diagnostics.CodeAnalysis.SuppressMessage(
    "Design", "CA1032", Justification = "The message always names a file.")]
public sealed partial class ReformerFormatException : FormatException
{
    /// <summary>Creates the exception for a file.</summary>
    /// <param name="path">The file at fault; it starts the message.</param>
    /// <param name="problem">What was expected and what was found.</param>
    public ReformerFormatException(string path, string problem)
        : base(MessageOf(path, problem)) => Path = path;

    /// <summary>Creates the exception for a file, keeping the error that revealed it.</summary>
    /// <param name="path">The file at fault; it starts the message.</param>
    /// <param name="problem">What was expected and what was found.</param>
    /// <param name="innerException">The error underneath.</param>
    public ReformerFormatException(string path, string problem, Exception innerException)
        : base(MessageOf(path, problem), innerException) => Path = path;

    /// <summary>The file (or directory) at fault.</summary>
    public string Path { get; }

    /// <summary>
    /// Creates the exception for a JSON file from what its reader complained of, in words of the file.
    /// </summary>
    /// <param name="path">The file at fault; it starts the message.</param>
    /// <param name="expected">What the file should hold.</param>
    /// <param name="error">The complaint.</param>
    /// <returns>The exception.</returns>
    public static ReformerFormatException FromJson(string path, string expected, JsonException error)
    {
        ArgumentNullException.ThrowIfNull(error);

        // A message is a sentence, which may name a type of .NET, and then "Path: $.x | LineNumber: 0 | ...".
        string sentence = Places().Replace(error.Message, "");
        string where = error.Path is { Length: > 1 } place ? $" at {place}" : "";
        string line = error.LineNumber is long number ? FormattableString.Invariant($" in line {number + 1}") : "";
        string problem =
            MissingProperties().Match(sentence) is { Success: true } missing ? $"none of {missing.Groups[1].Value}"
            : TypeName().IsMatch(sentence) ? $"a value of another kind{where}{line}"
            : $"an error{line}: {sentence}";
        return new ReformerFormatException(path, $"expected {expected}, found {problem}", error);
    }

    private static string MessageOf(string path, string problem) =>
        $"{VisibleText.Of(path)}: {VisibleText.Of(problem)}";

    [GeneratedRegex(@"\s*(Path: \$.*|LineNumber: .*)$", RegexOptions.Singleline)]
    private static partial Regex Places();

    [GeneratedRegex("missing required properties including: (.*?)\\.?$", RegexOptions.Singleline)]
    private static partial Regex MissingProperties();

    [GeneratedRegex(@"\b(System|ReformerNative)\.")]
    private static partial Regex TypeName();
}
