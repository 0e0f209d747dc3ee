namespace ReformerNative.Oracle.Tests;

/// <summary>Finds tests/vectors and measures as its README says.</summary>
internal static class Vectors
{
    /// <summary>
    /// The files hold float64 results rounded to float32: half a unit in the last place of the largest value.
    /// </summary>
    public const double Float32Rounding = 1.0 / (1 << 24);

    public static string Root { get; } = FindRoot();

    public static IEnumerable<string> Cases(string family) =>
        Directory.GetDirectories(Path.Combine(Root, family)).Select(d => Path.GetFileName(d)).Order();

    /// <summary>max|a - b| / max|b| over the rows (of <paramref name="rowSize"/> numbers) that count.</summary>
    public static double RelativeError(double[] actual, double[] expected, int rowSize = 1, bool[]? rows = null)
    {
        Assert.That(actual, Has.Length.EqualTo(expected.Length));
        double error = 0, largest = 0;
        for (var i = 0; i < expected.Length; i++)
        {
            if (rows is not null && !rows[i / rowSize])
            {
                continue;
            }

            // A NaN anywhere makes the whole result NaN, which no limit accepts.
            error = Math.Max(error, Math.Abs(actual[i] - expected[i]));
            largest = Math.Max(largest, Math.Abs(expected[i]));
        }

        return error / largest;
    }

    private static string FindRoot()
    {
        for (var folder = new DirectoryInfo(AppContext.BaseDirectory); folder is not null; folder = folder.Parent)
        {
            var candidate = Path.Combine(folder.FullName, "tests", "vectors");
            if (Directory.Exists(candidate))
            {
                return candidate;
            }
        }

        throw new DirectoryNotFoundException($"no tests/vectors above {AppContext.BaseDirectory}");
    }
}
