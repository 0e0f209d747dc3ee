namespace ReformerNative.Tests.Cli;

/// <summary>
/// What <c>./reformer</c> does on a machine that lacks packages, with programs that only say they ran.
/// </summary>
public sealed class LauncherTests
{
    private const string Missing = "rfn_need libmissing-dev false; rfn_install";

    [Test]
    public void Packages_OfTheLauncher_AreThoseOfTheLibraryAlone()
    {
        (int exitCode, string output, string errors) = Setup(
            """rfn_need() { rfn_missing+=("$1"); }; rfn_need_library; echo "${rfn_missing[*]}" """);
        Assert.That(exitCode, Is.Zero, errors);
        Assert.That(output.Trim(), Is.EqualTo("g++ cmake ninja-build libopenblas-pthread-dev libhwy-dev"));
        string launcher = File.ReadAllText(Repository.PathOf("reformer"));
        Assert.That(launcher, Does.Contain("rfn_need_library").And.Not.Contain("rfn_need_tests"));
    }

    [Test]
    public void Install_WithoutATerminal_ShowsTheCommandBeforeSudoRunsIt()
    {
        (int exitCode, string output, string errors) = Setup(Missing + " </dev/null 2>&1");
        Assert.That(exitCode, Is.Zero, output + errors);
        string[] lines = output.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        Assert.That(lines, Has.Length.EqualTo(3), output);
        Assert.That(lines[0], Does.EndWith("are not installed: libmissing-dev"));
        Assert.That(lines[1], Does.StartWith("reformer: running 'sudo -n env ").And.Contain(" libmissing-dev'"));
        Assert.That(lines[2], Does.StartWith("ran sudo -n env ").And.EndsWith(" libmissing-dev"));
    }

    [TestCase("n", 1, false)]
    [TestCase("", 0, true)]
    [TestCase("y", 0, true)]
    public void Install_AtATerminal_AsksFirst(string answer, int expected, bool runs)
    {
        (int exitCode, string output, string errors) = Setup(Missing, answer);
        Assert.That(output, Does.Contain("reformer: run 'sudo env ").And.Contain("[Y/n]"), errors);
        Assert.That(output.Contains("ran sudo", StringComparison.Ordinal), Is.EqualTo(runs), output);
        Assert.That(exitCode, Is.EqualTo(expected), output);
    }

    [Test]
    public void Install_ThatFails_SaysWhatFailed()
    {
        (int exitCode, string output, _) = Setup(Missing + " </dev/null 2>&1", sudo: "exit 3");
        Assert.That(exitCode, Is.EqualTo(1));
        Assert.That(output, Does.EndWith("libmissing-dev' failed\n"));
    }

    /// <summary>Runs lines of a script that has read cmake/setup.sh, as another user than root.</summary>
    /// <param name="script">The lines.</param>
    /// <param name="answer">What is typed at a terminal; null: there is none.</param>
    /// <param name="sudo">What the command sudo does.</param>
    private static (int ExitCode, string Output, string Errors) Setup(
        string script, string? answer = null, string sudo = """echo "ran sudo $*" >"${RFN_TEST_LOG:-/dev/stderr}" """)
    {
        using var directory = new TemporaryDirectory();
        Program(directory, "sudo", sudo);
        Program(directory, "apt-get", "exit 9");
        Program(directory, "id", "echo 1000");
        string log = Path.Combine(directory.Path, "log");
        File.WriteAllText(
            Path.Combine(directory.Path, "script"),
            $"""
            root={Repository.Root}
            PATH={directory.Path}:$PATH
            source "$root/cmake/setup.sh"
            {script}
            """);
        string run = $"bash {directory.Path}/script";
        if (answer is null)
        {
            // What sudo prints is hidden, so it is kept in a file and shown behind the rest.
            return Repository.Run(
                "bash", "-c", $"export RFN_TEST_LOG={log}; {run}; code=$?; cat {log} 2>/dev/null; exit $code");
        }

        return Repository.Run(
            "bash", "-c",
            $"export RFN_TEST_LOG={log}; echo '{answer}' | script -qec '{run}' /dev/null; code=$?; "
            + $"cat {log} 2>/dev/null; exit $code");
    }

    private static void Program(TemporaryDirectory directory, string name, string body)
    {
        string path = Path.Combine(directory.Path, name);
        File.WriteAllText(path, $"#!/bin/bash\n{body}\n");
        Assert.That(Repository.Run("chmod", "u+x", path).ExitCode, Is.Zero);
    }
}
