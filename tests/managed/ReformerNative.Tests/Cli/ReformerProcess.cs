using System.Diagnostics;
using System.Text.Json;

namespace ReformerNative.Tests.Cli;

/// <summary>What a run of the command printed.</summary>
internal sealed record ReformerResult(int ExitCode, string Output, string Errors)
{
    /// <summary>The output as JSON, one object a line.</summary>
    public JsonElement[] Lines =>
        [
            .. Output
                .Split('\n', StringSplitOptions.RemoveEmptyEntries)
                .Select(line => JsonDocument.Parse(line).RootElement),
        ];
}

/// <summary>The built command in a process of its own, as a user starts it.</summary>
internal sealed class ReformerProcess : IDisposable
{
    private static readonly TimeSpan Limit = TimeSpan.FromMinutes(15); // far beyond need; a hang must end

    private readonly Process _process;
    private readonly Task<string> _errors;

    private ReformerProcess(string[] arguments)
    {
        string program = Path.Combine(AppContext.BaseDirectory, "reformer.dll");

        // A shell's background jobs start with SIGINT ignored, and the command leaves it so; here it must arrive.
        var start = new ProcessStartInfo("env", ["--default-signal=INT", "dotnet", program, .. arguments])
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        start.Environment["DOTNET_TieredPGO"] = "0";
        _process = Process.Start(start)!;
        _errors = _process.StandardError.ReadToEndAsync();
    }

    public static ReformerResult Run(params string[] arguments)
    {
        using var process = new ReformerProcess(arguments);
        return process.Finish();
    }

    public static ReformerProcess Start(params string[] arguments) => new(arguments);

    public string? ReadLine() => _process.StandardOutput.ReadLine();

    /// <summary>Sends a signal, for example INT, as Ctrl+C does.</summary>
    public void Signal(string name)
    {
        (int code, _, string errors) = Repository.Run(
            "kill", $"-{name}", _process.Id.ToString(System.Globalization.CultureInfo.InvariantCulture));
        Assert.That(code, Is.Zero, errors);
    }

    /// <summary>Waits for the end and takes the output that was not read yet.</summary>
    public ReformerResult Finish()
    {
        Task<string> output = _process.StandardOutput.ReadToEndAsync();
        if (!_process.WaitForExit(Limit))
        {
            _process.Kill(entireProcessTree: true);
            Assert.Fail($"the command did not end within {Limit}");
        }

        return new ReformerResult(_process.ExitCode, output.GetAwaiter().GetResult(), _errors.GetAwaiter().GetResult());
    }

    public void Dispose()
    {
        if (!_process.HasExited)
        {
            _process.Kill(entireProcessTree: true);
        }

        _process.Dispose();
    }
}

/// <summary>Small things that the tests of the command feed it.</summary>
internal static class CliInputs
{
    /// <summary>A model of 32 channels for bytes.</summary>
    public static string WriteConfig(TemporaryDirectory directory)
    {
        string path = directory.File("config.json");
        (
            ReformerNative.Model.ReformerPresets.Text with
            {
                HiddenSize = 32,
                AxialPosEmbdsDim = [8, 24],
                NumAttentionHeads = 2,
                AttentionHeadSize = 16,
                FeedForwardSize = 64,
                LshAttnChunkLength = 16,
                LocalAttnChunkLength = 16,
                HiddenDropoutProb = 0.1,
            }
        ).Save(path);
        return path;
    }

    public static string WriteText(TemporaryDirectory directory)
    {
        string path = directory.File("text.txt");
        File.WriteAllText(
            path, string.Concat(Enumerable.Range(0, 2000).Select(i => $"line {i} of a text to train on, {i * i}\n")));
        return path;
    }

    public static string CopyDirectory(string source, string destination)
    {
        Directory.CreateDirectory(destination);
        foreach (string file in Directory.EnumerateFiles(source))
        {
            File.Copy(file, Path.Combine(destination, Path.GetFileName(file)));
        }

        return destination;
    }

    public static void Truncate(string path, long bytes)
    {
        using FileStream stream = File.OpenWrite(path);
        stream.SetLength(bytes);
    }

    public static string[] Names(JsonElement item) => [.. item.EnumerateObject().Select(property => property.Name)];
}
