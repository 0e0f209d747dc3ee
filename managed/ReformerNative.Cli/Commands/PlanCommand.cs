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
    private static readonly Option<string?> Config = new("--config")
    {
        Description = "A model's config.json, instead of sizes",
        HelpName = "FILE",
    };
    private static readonly Option<string?> Preset = CommonOptions.Word(
        "--preset", "A ready model, instead of sizes", [.. ReformerPresets.Names]);
    private static readonly Option<string?> OptimizerName = CommonOptions.Word(
        "--optimizer", "The update rule [default: adamw]", "adamw", "adafactor");

    private static readonly Option<bool> Evaluation = new("--evaluation")
    {
        Description = "Plan evaluation or generation instead of training",
    };

    public static Command Create()
    {
        var command = new Command(
            "plan",
            "Say what a run will take in memory, buffer by buffer, before anything is allocated, and what more memory "
                + "buys in speed."
        )
        {
            Config, Preset, OptimizerName, Evaluation, CommonOptions.Memory,
            CommonOptions.Device, CommonOptions.Precision, CommonOptions.Threads, CommonOptions.Json,
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
        MemoryLimit? memory = CommonOptions.MemoryOf(parsed);
        bool evaluation = parsed.GetValue(Evaluation);
        if (evaluation && memory is not null)
        {
            throw new UsageException(
                "--memory: expected none beside --evaluation, which has no backward pass to keep anything for");
        }

        using ReformerContext context = CommonOptions.Context(parsed);
        PlannedMemory plan = evaluation
            ? PlannedMemory.Make(context, () => MemoryPlan.ForEvaluation(config, context, batch, length))
            : PlannedMemory.ForTraining(config, context, options, memory).Plan;
        (string Name, PlannedMemory Plan)[] trade = evaluation ? [] : Trade(config, context, options, plan, memory);
        double Work(MemoryPlan item) => Flops.Step(config, length, batch, item.Kept);
        double most = Work(trade.Length > 0 ? trade[0].Plan.Plan : plan.Plan);
        if (parsed.GetValue(CommonOptions.Json))
        {
            var json = new JsonObject
            {
                ["planned_bytes"] = plan.TotalBytes,
                ["buffers"] = new JsonArray([
                    .. plan.Entries.Select(entry => new JsonObject { ["name"] = entry.Name, ["bytes"] = entry.Bytes }),
                ]),
                ["free_bytes"] = context.MemoryInfo.FreeBytes,
                ["lsh_crossover"] = AttentionCost.Crossover(config),
                ["layers"] = new JsonArray([
                    .. config.AttnLayers.Select(kind => (JsonNode)Word(AttentionCost.Resolve(config, kind, length))),
                ]),
            };
            if (!evaluation)
            {
                json["kept"] = Output.Kept(plan.Plan.Kept);
                json["trade"] = new JsonArray([.. trade.Select(item => new JsonObject
                {
                    ["keep"] = item.Name,
                    ["planned_bytes"] = item.Plan.TotalBytes,
                    ["kept"] = Output.Kept(item.Plan.Plan.Kept),
                    ["flops"] = Work(item.Plan.Plan),
                    ["relative_flops"] = Work(item.Plan.Plan) / most,
                })]);
            }

            Output.Json(json);
            return ExitCode.Done;
        }

        Output.Table(["buffer", "size"], plan.Entries.Append(new MemoryPlanEntry("total", plan.TotalBytes))
            .Select(entry => (string[])[entry.Name, Output.Bytes(entry.Bytes)]));
        long free = context.MemoryInfo.FreeBytes;
        Console.WriteLine(
            $"free now: {Output.Bytes(free)}{(plan.Plan.TotalBytes > free ? ", which is not enough" : "")}");
        Console.WriteLine(
            AttentionCost.Crossover(config) is long crossover
                ? Output.Text($"LSH attention costs no more than dense attention from {crossover} tokens on")
                : "there is no length from which LSH attention costs no more than dense attention"
        );
        foreach ((AttentionKind kind, int layer) in config.AttnLayers.Select((kind, layer) => (kind, layer)))
        {
            if (kind == AttentionKind.Auto)
            {
                Console.WriteLine(
                    Output.Text(
                        $"layer {layer}: auto is {Word(AttentionCost.Resolve(config, kind, length))} at {length} tokens"
                    )
                );
            }
        }

        if (!evaluation)
        {
            Console.WriteLine();
            Output.Table(["memory for speed: layers keep", "memory", "FLOPs of a step"], trade.Select(item => (string[])
            [
                item.Name == "asked" ? $"--memory {memory!.Text}: {Output.KeptText(item.Plan.Plan.Kept)}" : item.Name,
                Output.Bytes(item.Plan.TotalBytes),
                Output.Text($"{100 * Work(item.Plan.Plan) / most:F1} %"),
            ]));
        }

        return ExitCode.Done;
    }

    private static string Word(AttentionKind kind) => kind.ToString().ToLowerInvariant();

    /// <summary>What each level costs when all layers have it, and the limit that was asked for.</summary>
    private static (string Name, PlannedMemory Plan)[] Trade(
        ReformerConfig config, ReformerContext context, TrainingOptions options, PlannedMemory plan,
        MemoryLimit? limit) =>
        [
            .. Enum.GetValues<KeepActivations>()
                .Select(level =>
                    (
                        level.ToString().ToLowerInvariant(),
                        plan.With(MemoryPlan.ForTraining(config, context, options, level))
                    )
                ),
            .. limit is null ? Enumerable.Empty<(string, PlannedMemory)>() : [("asked", plan)],
        ];

    private static ReformerConfig ChooseConfig(ParseResult parsed)
    {
        string? file = parsed.GetValue(Config);
        string? preset = parsed.GetValue(Preset);
        Option[] sizes =
        [
            .. ModelShape
                .All.Except([ModelShape.Length, ModelShape.Batch])
                .Where(option => CommonOptions.IsGiven(parsed, option)),
        ];
        return (file, preset) switch
        {
            (not null, not null) => throw new UsageException("--preset: expected none beside --config"),
            (null, null) => ModelShape.Config(parsed),
            _ when sizes.Length > 0 => throw new UsageException(
                $"{sizes[0].Name}: expected none beside --config or --preset"),
            (not null, _) => ReformerConfig.Load(file),
            _ => ReformerPresets.FromName(preset!),
        };
    }
}
