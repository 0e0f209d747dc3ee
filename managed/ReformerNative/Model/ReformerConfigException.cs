namespace ReformerNative.Model;

/// <summary>
/// A configuration breaks rules. The message lists each broken rule: the key, what was expected and what was found.
/// </summary>
[System.Diagnostics.CodeAnalysis.SuppressMessage(
    "Design",
    "CA1032",
    Justification = "The message is made from the problems."
)]
public sealed class ReformerConfigException : Exception
{
    /// <summary>Creates the exception.</summary>
    /// <param name="problems">One sentence for each broken rule.</param>
    public ReformerConfigException(IReadOnlyList<string> problems)
        : base(string.Join("; ", problems)) => Problems = problems;

    /// <summary>One sentence for each broken rule.</summary>
    public IReadOnlyList<string> Problems { get; }
}
