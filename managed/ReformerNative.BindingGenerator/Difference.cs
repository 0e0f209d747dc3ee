namespace ReformerNative.BindingGenerator;

/// <summary>Says in a few lines how two texts differ.</summary>
internal static class Difference
{
    private const int Shown = 10;

    /// <summary>
    /// Lines only in <paramref name="current"/> (-) and only in <paramref name="expected"/> (+), the first ten of each.
    /// </summary>
    public static string Summary(string name, string current, string expected)
    {
        string[] before = current.Split('\n');
        string[] after = expected.Split('\n');
        string[] removed = [.. before.Except(after)];
        string[] added = [.. after.Except(before)];
        IEnumerable<string> lines = [
            $"{name}: {removed.Length} lines are not in the header's bindings, {added.Length} are missing",
            .. removed.Take(Shown).Select(line => "  - " + line),
            .. added.Take(Shown).Select(line => "  + " + line),
        ];
        return string.Join('\n', lines) + "\n";
    }
}
