using System.Text.Json;
using System.Text.Json.Serialization;
using ReformerNative.Checkpoints;

namespace ReformerNative.Training;

/// <summary>What a checkpoint says about the run besides tensors: <c>trainer.json</c>.</summary>
/// <param name="Format">Version of this file's form.</param>
/// <param name="Step">Steps done.</param>
/// <param name="Tokens">Tokens read so far.</param>
/// <param name="Data">Identity of the data.</param>
/// <param name="Options">The options of the run.</param>
internal sealed record TrainerState(int Format, long Step, long Tokens, string Data, TrainingOptions Options)
{
    public const int CurrentFormat = 1;

    private const int MaximumBytes = 1 << 20;

    public void Save(string path) =>
        AtomicFile.WriteText(path, JsonSerializer.Serialize(this, TrainerJson.Default.TrainerState) + "\n");

    public static TrainerState Load(string path)
    {
        string text = RegularFile.ReadText(path, "the state of a training run", MaximumBytes);
        try
        {
            TrainerState state = JsonSerializer.Deserialize(text, TrainerJson.Default.TrainerState)
                ?? throw new ReformerFormatException(path, "expected a JSON object, found null");
            if (state.Format != CurrentFormat || state.Step < 0 || state.Tokens < 0)
            {
                throw new ReformerFormatException(
                    path,
                    $"expected format {CurrentFormat} and counts from 0 up, found format {state.Format}, step "
                        + $"{state.Step}, tokens {state.Tokens}"
                );
            }

            state.Options.Validate();
            return state;
        }
        catch (JsonException error)
        {
            throw ReformerFormatException.FromJson(path, "the state of a training run", error);
        }
        catch (ArgumentException error)
        {
            throw new ReformerFormatException(path, $"expected the state of a training run: {error.Message}", error);
        }
    }
}

[JsonSourceGenerationOptions(
    WriteIndented = true, NewLine = "\n", PropertyNamingPolicy = JsonKnownNamingPolicy.SnakeCaseLower,
    UseStringEnumConverter = true, RespectRequiredConstructorParameters = true, RespectNullableAnnotations = true,
    AllowDuplicateProperties = false)]
[JsonSerializable(typeof(TrainerState))]
internal sealed partial class TrainerJson : JsonSerializerContext;
