using System.CommandLine;
using System.Text.Json.Nodes;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Cli.Commands;

/// <summary><c>reformer plan</c>.</summary>
internal static class PlanCommand
{
    private static readonly Option<string?> Config = new("--config") { Description = "A model's config.json, instead of sizes", HelpName = "FILE" };
    private static readonly Option<string?> Preset = CommonOptions.Word("--preset", "A ready model, instead of sizes", [.. ReformerPresets.Names]);
    private static readonly Option<string?> OptimizerName = CommonOptions.Word(
        "--optimizer", "The update rule [default: adamw]", "adamw", "adafactor");

    private static readonly Option<bool> Evaluation = new("--evaluation") { Description = "Plan evaluation or generation instead of training" };

    public static Command Create()
    {
        var command = new Command("plan", "Say what a run will take in memory, buffer by buffer, before anything is allocated.")
        {
            Config, Preset, OptimizerName, Evaluation, CommonOptions.Device, CommonOptions.Precision, CommonOptions.Threads, CommonOptions.Json,
        };
        foreach (Option option in ModelShape.All)
        {
            command.Add(option);
        }

        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult parsed)
    {
        ReformerConfig config = ChooseConfig(parsed);
        int length = parsed.GetValue(ModelShape.Length);
        int batch = parsed.GetValue(ModelShape.Batch);
        if (config.PositionLimit is long limit && length > limit)
        {
            throw new UsageException($"--length: expected at most the {limit} positions of the model, found {length}");
        }

        var options = new TrainingOptions
        {
            BatchSize = batch,
            Length = length,
            Optimizer = Enum.Parse<OptimizerKind>(parsed.GetValue(OptimizerName) ?? "adamw", ignoreCase: true),
        };
        using ReformerContext context = CommonOptions.Context(parsed);
        PlannedMemory plan = PlannedMemory.Make(context, () => parsed.GetValue(Evaluation)
            ? MemoryPlan.ForEvaluation(config, context, batch, length)
            : MemoryPlan.ForTraining(config, context, options));
        if (parsed.GetValue(CommonOptions.Json))
        {
            Output.Json(new JsonObject
            {
                ["planned_bytes"] = plan.TotalBytes,
                ["buffers"] = new JsonArray([.. plan.Entries.Select(entry => new JsonObject { ["name"] = entry.Name, ["bytes"] = entry.Bytes })]),
                ["free_bytes"] = context.MemoryInfo.FreeBytes,
                ["lsh_crossover"] = AttentionCost.Crossover(config),
                ["layers"] = new JsonArray([.. config.AttnLayers.Select(kind => (JsonNode)Word(AttentionCost.Resolve(config, kind, length)))]),
            });
            return ExitCode.Done;
        }

        Output.Table(["buffer", "size"], plan.Entries.Append(new MemoryPlanEntry("total", plan.TotalBytes))
            .Select(entry => (string[])[entry.Name, Output.Bytes(entry.Bytes)]));
        long free = context.MemoryInfo.FreeBytes;
        Console.WriteLine($"free now: {Output.Bytes(free)}{(plan.Plan.TotalBytes > free ? ", which is not enough" : "")}");
        Console.WriteLine(AttentionCost.Crossover(config) is long crossover
            ? Output.Text($"LSH attention costs no more than dense attention from {crossover} tokens on")
            : "LSH attention costs more than dense attention at every length");
        foreach ((AttentionKind kind, int layer) in config.AttnLayers.Select((kind, layer) => (kind, layer)))
        {
            if (kind == AttentionKind.Auto)
            {
                Console.WriteLine(Output.Text($"layer {layer}: auto is {Word(AttentionCost.Resolve(config, kind, length))} at {length} tokens"));
            }
        }

        return ExitCode.Done;
    }

    private static string Word(AttentionKind kind) => kind.ToString().ToLowerInvariant();

    private static ReformerConfig ChooseConfig(ParseResult parsed)
    {
        string? file = parsed.GetValue(Config);
        string? preset = parsed.GetValue(Preset);
        Option[] sizes = [.. ModelShape.All.Except([ModelShape.Length, ModelShape.Batch]).Where(option => CommonOptions.IsGiven(parsed, option))];
        return (file, preset) switch
        {
            (not null, not null) => throw new UsageException("--preset: expected none beside --config"),
            (null, null) => ModelShape.Config(parsed),
            _ when sizes.Length > 0 => throw new UsageException($"{sizes[0].Name}: expected none beside --config or --preset"),
            (not null, _) => ReformerConfig.Load(file),
            _ => ReformerPresets.FromName(preset!),
        };
    }
}
