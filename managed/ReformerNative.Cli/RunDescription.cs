using System.Text.Json;
using System.Text.Json.Serialization;
using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Training;

namespace ReformerNative.Cli;

/// <summary>Kinds of data that the command can train on.</summary>
internal enum DataTask
{
    Text,
    Duplicate,
}

/// <summary>What a run reads: enough to open the same data again.</summary>
/// <param name="Task">Kind of data.</param>
/// <param name="Paths">Text: files and folders.</param>
/// <param name="Pattern">Text: the files of folders.</param>
/// <param name="Symbols">Duplication: how many symbols.</param>
/// <param name="HeldOut">Text: the part of each file that is held out.</param>
internal sealed record DataDescription(
    DataTask Task, IReadOnlyList<string> Paths, string Pattern, int Symbols,
    double HeldOut = DataDescription.UsualHeldOut)
{
    public const int PaperSymbols = 127;
    public const double UsualHeldOut = 0.05;

    /// <summary>Whether there is anything to measure on.</summary>
    public bool HasHeldOut => Task != DataTask.Text || HeldOut > 0;

    /// <summary>What one token is, for people.</summary>
    public string Unit => Task == DataTask.Text ? "byte" : "symbol";

    public static DataDescription Duplicate(int symbols) => new(DataTask.Duplicate, [], "", symbols);

    /// <summary>Text of the given files and folders.</summary>
    public static DataDescription Text(IReadOnlyList<string> paths) =>
        new(DataTask.Text, [.. paths.Select(Path.GetFullPath)], "*", PaperSymbols);

    /// <summary>The SDK's documentation.</summary>
    public static DataDescription Documentation() =>
        new(DataTask.Text, SdkDocumentation.Folders(), SdkDocumentation.Pattern, PaperSymbols);

    /// <summary>Opens the data; dispose what is disposable.</summary>
    /// <param name="anyBytes">Whether to take files, too, that look like no text.</param>
    public IBatchSource Open(bool anyBytes)
    {
        if (Task == DataTask.Duplicate)
        {
            return new DuplicationTask(Symbols);
        }

        TextFiles text = TextFiles.Open(Paths, Pattern, HeldOut);
        if (!anyBytes && text.BinaryFiles is [var first, ..] binary)
        {
            text.Dispose();
            throw new ReformerFormatException(
                first,
                Output.Text($"expected text, found zero bytes, as in {binary.Count} of {text.FileCount} files; ")
                    + $"leave them out, or train on bytes of any kind with {CommonOptions.AnyBytes.Name}");
        }

        return text;
    }
}

/// <summary>
/// What a run's directory says of it besides its checkpoints: <c>run.json</c>, so that resuming needs no option again.
/// </summary>
/// <param name="Data">The data.</param>
/// <param name="Options">The options of the trainer.</param>
internal sealed record RunDescription(DataDescription Data, TrainingOptions Options)
{
    private const int MaximumBytes = 16 << 20;

    public void Save(string directory) =>
        AtomicFile.WriteText(
            Path.Combine(directory, CheckpointFiles.Run),
            JsonSerializer.Serialize(this, RunJson.Default.RunDescription) + "\n");

    /// <summary>Whether a run's directory has its description.</summary>
    public static bool IsIn(string directory) => File.Exists(Path.Combine(directory, CheckpointFiles.Run));

    /// <summary>The description of the run that a checkpoint belongs to; null when none lies there.</summary>
    /// <param name="checkpoint">A checkpoint, or a run's directory.</param>
    public static RunDescription? Find(string checkpoint)
    {
        // A shell completes a directory's name with a separator; a link may stand for a checkpoint of the run.
        string full = Path.TrimEndingDirectorySeparator(Path.GetFullPath(checkpoint));
        string? target = Directory.Exists(full)
            ? Directory.ResolveLinkTarget(full, returnFinalTarget: true)?.FullName
            : null;
        string?[] places = [full, Path.GetDirectoryName(full), Path.GetDirectoryName(target)];
        string? path = places.OfType<string>()
            .Select(place => Path.Combine(place, CheckpointFiles.Run))
            .FirstOrDefault(File.Exists);
        if (path is null)
        {
            return null;
        }

        string text = RegularFile.ReadText(path, "the description of a run", MaximumBytes);
        try
        {
            RunDescription run = JsonSerializer.Deserialize(text, RunJson.Default.RunDescription)
                ?? throw new ReformerFormatException(path, "expected a JSON object, found null");
            run.Options.Validate();
            return run;
        }
        catch (JsonException error)
        {
            throw ReformerFormatException.FromJson(path, "the description of a run", error);
        }
        catch (ArgumentException error)
        {
            throw new ReformerFormatException(path, $"expected the description of a run: {error.Message}", error);
        }
    }
}

[JsonSourceGenerationOptions(
    WriteIndented = true, NewLine = "\n", PropertyNamingPolicy = JsonKnownNamingPolicy.SnakeCaseLower,
    UseStringEnumConverter = true, RespectRequiredConstructorParameters = true, RespectNullableAnnotations = true,
    AllowDuplicateProperties = false)]
[JsonSerializable(typeof(RunDescription))]
internal sealed partial class RunJson : JsonSerializerContext;
