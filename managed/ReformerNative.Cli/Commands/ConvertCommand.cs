using System.CommandLine;
using ReformerNative.Checkpoints;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Cli.Commands;

/// <summary><c>reformer convert</c>.</summary>
internal static class ConvertCommand
{
    private static readonly Argument<string> Source = new("SOURCE")
    {
        Description = "A checkpoint (ours, or Hugging Face's of any float type), or a run",
    };

    private static readonly Argument<string> Destination = new("DESTINATION")
    {
        Description = "A directory for config.json and model.safetensors",
    };
    private static readonly Option<string?> Residual = CommonOptions.Word(
        "--residual", "How streams are added from now on", "exact", "float");
    private static readonly Option<int?> Rounds = CommonOptions.Maybe("--rounds", "Hash rounds from now on", 1);
    private static readonly Option<string?> Form = CommonOptions.Word(
        "--attention", "Form of LSH attention from now on", [.. AttentionPreset.All.Select(preset => preset.Name)]);

    public static Command Create()
    {
        var command = new Command(
            "convert",
            "Write a checkpoint as float32 with the names that Hugging Face's library reads, without the state of its "
                + "training."
        )
        {
            Source, Destination, Residual, Form, Rounds,
        };
        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult parsed)
    {
        string source = CheckpointStore.Resolve(parsed.GetRequiredValue(Source));
        string destination = parsed.GetRequiredValue(Destination);
        if (File.Exists(destination)
            || (Directory.Exists(destination) && Directory.EnumerateFileSystemEntries(destination).Any()))
        {
            throw new IOException($"{destination}: expected no file and no directory with content, found one");
        }

        using var context = new ReformerContext();
        using ReformerModel model = ReformerModel.Load(
            source,
            context,
            config =>
                config with
                {
                    Residual = parsed.GetValue(Residual) is { } residual
                        ? Enum.Parse<ResidualMode>(residual, ignoreCase: true)
                        : config.Residual,
                    NumHashes = parsed.GetValue(Rounds) ?? config.NumHashes,
                    LshPreset = parsed.GetValue(Form) is { } form ? AttentionPreset.FromName(form) : config.LshPreset,
                }
        );
        model.Save(destination);
        Console.WriteLine(Output.Text($"{destination}: {model.ParameterCount:N0} parameters"));
        return ExitCode.Done;
    }
}
