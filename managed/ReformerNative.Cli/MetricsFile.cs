using System.Text.Json;
using System.Text.Json.Nodes;
using ReformerNative.Checkpoints;
using ReformerNative.Model;
using ReformerNative.Training;

namespace ReformerNative.Cli;

/// <summary>
/// The log of a run, <c>metrics.jsonl</c> in its directory: one JSON object a line. It is opened with the first line. A
/// log that cannot be written never ends a run.
/// </summary>
/// <param name="directory">The run's directory.</param>
/// <param name="resumedStep">
/// The step that the run goes on from: lines of later steps are of work that was lost, and are removed; 0 for a new
/// run.
/// </param>
internal sealed class MetricsFile(string directory, long resumedStep) : IDisposable
{
    private readonly string _path = Path.Combine(directory, CheckpointFiles.Metrics);

    private FileStream? _stream;
    private bool _told;

    /// <summary>Adds what a step gave.</summary>
    public void Add(TrainingStep step, long peakBytes)
    {
        var line = new JsonObject
        {
            ["step"] = step.Step,
            ["loss"] = Output.Number(step.Loss.Loss),
            ["bits_per_byte"] = Output.Number(step.Loss.Bits),
            ["accuracy"] = Output.Number(step.Loss.Accuracy),
            ["learning_rate"] = step.LearningRate,
            ["gradient_norm"] = Output.Number(step.GradientNorm),
            ["tokens"] = step.Tokens,
            ["tokens_per_second"] = Output.Number(step.TokensPerSecond),
            ["seconds"] = step.Seconds,
            ["peak_bytes"] = peakBytes,
        };
        if (step.HeldOut is { } heldOut)
        {
            AddHeldOut(line, heldOut);
        }

        if (step.Checkpoint is { } checkpoint)
        {
            line["checkpoint"] = Path.GetFileName(checkpoint);
        }

        Write(line);
    }

    /// <summary>Adds a measurement at the end of a run.</summary>
    public void Add(long step, LossResult heldOut)
    {
        var line = new JsonObject { ["step"] = step };
        AddHeldOut(line, heldOut);
        Write(line);
    }

    public void Dispose()
    {
        try
        {
            _stream?.Dispose();
        }
        catch (IOException)
        {
            // Told before: each line is written at once.
        }
    }

    private static void AddHeldOut(JsonObject line, LossResult heldOut)
    {
        line["heldout_loss"] = Output.Number(heldOut.Loss);
        line["heldout_bits_per_byte"] = Output.Number(heldOut.Bits);
        line["heldout_accuracy"] = Output.Number(heldOut.Accuracy);
    }

    private void Write(JsonObject line)
    {
        try
        {
            _stream ??= Open();
            _stream.Write(System.Text.Encoding.UTF8.GetBytes(Output.Line(line) + "\n"));
            _stream.Flush();
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException or ReformerFormatException)
        {
            if (!_told)
            {
                _told = true;
                Console.Error.WriteLine($"reformer: the log of the run has holes: {error.Message}");
            }
        }
    }

    private FileStream Open()
    {
        if (File.Exists(_path))
        {
            RegularFile.Require(_path, "the log of a run");
            KeepStepsDone();
        }

        return new FileStream(_path, FileMode.Append, FileAccess.Write, FileShare.Read);
    }

    /// <summary>Removes lines of later steps, and a line that a kill left unfinished.</summary>
    private void KeepStepsDone() =>
        AtomicFile.Write(_path, stream =>
        {
            using var writer = new StreamWriter(stream, leaveOpen: true);
            writer.NewLine = "\n";
            foreach (string line in File.ReadLines(_path).Where(line => StepOf(line) <= resumedStep))
            {
                writer.WriteLine(line);
            }
        });

    /// <summary>The step of a line; beyond all steps for what is no such line.</summary>
    private static long StepOf(string line)
    {
        try
        {
            return JsonNode.Parse(line) is JsonObject item && item["step"]?.GetValue<long>() is long step
                ? step
                : long.MaxValue;
        }
        catch (Exception error) when (error is JsonException or InvalidOperationException or FormatException)
        {
            return long.MaxValue;
        }
    }
}
