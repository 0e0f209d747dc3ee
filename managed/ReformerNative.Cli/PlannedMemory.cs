using ReformerNative.Model;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Cli;

/// <summary>
/// What a run will take where it computes: the buffers, computed from shapes without allocating them, and what is in
/// use without them, which is measured here because this is the process that would run it: on the CPU the process
/// itself (runtime, libraries), on a GPU the driver's context with its kernels, and other processes.
/// </summary>
internal sealed class PlannedMemory
{
    private const int WarmSize = 64;

    private PlannedMemory(MemoryPlan plan, MemoryPlanEntry rest)
    {
        Plan = plan;
        Rest = rest;
    }

    public MemoryPlan Plan { get; }

    /// <summary>What is in use without the buffers.</summary>
    public MemoryPlanEntry Rest { get; }

    public long TotalBytes => Plan.TotalBytes + Rest.Bytes;

    public IEnumerable<MemoryPlanEntry> Entries => Plan.Entries.Prepend(Rest);

    /// <summary>Plans; call it before anything else is allocated.</summary>
    public static PlannedMemory Make(ReformerContext context, Func<MemoryPlan> plan) =>
        new(plan(), MeasureRest(context));

    /// <summary>Plans a training run within a limit; call it before anything else is allocated.</summary>
    /// <param name="config">The model.</param>
    /// <param name="context">Where it runs.</param>
    /// <param name="options">The options of the run, but for its memory budget.</param>
    /// <param name="limit">The limit; null to keep nothing.</param>
    /// <returns>The plan, and the options with the budget.</returns>
    public static (PlannedMemory Plan, TrainingOptions Options) ForTraining(
        ReformerConfig config, ReformerContext context, TrainingOptions options, MemoryLimit? limit)
    {
        MemoryPlan least = MemoryPlan.ForTraining(config, context, options);
        MemoryPlanEntry rest = MeasureRest(context);
        if (limit is null)
        {
            return (new PlannedMemory(least, rest), options);
        }

        long budget = limit.ForBuffers(context, rest.Bytes);
        if (budget < least.TotalBytes)
        {
            long expected = least.TotalBytes + rest.Bytes;
            string found = limit.Bytes is long asked
                ? Output.Bytes(asked)
                : $"{Output.Bytes(budget + rest.Bytes)} free";
            throw new UsageException(
                Output.Text($"--memory: expected at least {Output.Bytes(expected)} ({expected} bytes), what the run ")
                    + $"takes that keeps nothing, found {found}"
            );
        }

        options = options with { MemoryBudget = budget };
        return (new PlannedMemory(MemoryPlan.ForTraining(config, context, options), rest), options);
    }

    /// <summary>The same process with other buffers.</summary>
    public PlannedMemory With(MemoryPlan plan) => new(plan, Rest);

    private static MemoryPlanEntry MeasureRest(ReformerContext context)
    {
        Warm(context);
        return new MemoryPlanEntry(
            context.Device.Type == DeviceType.Cpu ? "process" : "device", new MemoryUse(context).Bytes);
    }

    /// <summary>
    /// A tiny training step makes the process load what a large one loads: code, threads and their stacks, the BLAS's
    /// own buffers.
    /// </summary>
    private static void Warm(ReformerContext context)
    {
        ReformerConfig tiny = ReformerPresets.Duplication with
        {
            HiddenSize = WarmSize,
            FeedForwardSize = WarmSize,
            VocabSize = WarmSize,
        };
        var options = new TrainingOptions
        {
            Steps = 1,
            BatchSize = 1,
            Length = WarmSize,
        };
        using ReformerModel model = ReformerModel.Create(tiny, context, seed: 0);
        using var trainer = new Trainer(model, new RandomTokens(WarmSize), options);
        trainer.RunStep();
    }
}
