using System.Diagnostics;

namespace ReformerNative.Tests.Cli;

/// <summary>
/// Lines of a shell in which the command is <c>$R</c>: for what a shell does to it (redirections, limits, pipes). The
/// working directory holds <c>config.json</c> (two small layers) and <c>text.txt</c>.
/// </summary>
internal static class ShellRun
{
    /// <summary>Options of a run of a few quick steps into the directory <c>run</c>.</summary>
    public const string Quick =
        "train --config config.json --data text.txt --length 48 --batch 1 --sample 0 --evaluation-batches 1 "
        + "--threads 1 --out run";

    private static readonly TimeSpan Limit = TimeSpan.FromMinutes(15); // far beyond need; a hang must end

    public static void WriteInputs(TemporaryDirectory directory)
    {
        CliInputs.WriteConfig(directory);
        CliInputs.WriteText(directory);
    }

    public static ReformerResult Run(TemporaryDirectory directory, string script)
    {
        var start = new ProcessStartInfo("bash", ["-c", script])
        {
            WorkingDirectory = directory.Path,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        start.Environment["R"] = $"dotnet {Path.Combine(AppContext.BaseDirectory, "reformer.dll")}";
        using Process process = Process.Start(start)!;
        Task<string> errors = process.StandardError.ReadToEndAsync();
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        if (!process.WaitForExit(Limit))
        {
            process.Kill(entireProcessTree: true);
            Assert.Fail($"the command did not end within {Limit}: {script}");
        }

        return new ReformerResult(process.ExitCode, output.GetAwaiter().GetResult(), errors.GetAwaiter().GetResult());
    }

    /// <summary>A sentence and an exit code, never a stack trace.</summary>
    public static void AssertRefused(ReformerResult result, params string[] parts)
    {
        Assert.That(result.ExitCode, Is.EqualTo(1), result.Output + result.Errors);
        Assert.That(result.Errors, Does.StartWith("reformer: "));
        Assert.That(result.Errors, Does.Not.Contain("   at ").And.Not.Contain("Exception"));
        foreach (string part in parts)
        {
            Assert.That(result.Errors, Does.Contain(part));
        }
    }
}
