using ReformerNative.Model;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Cli;

/// <summary>
/// What a run will take where it computes: the buffers, computed from shapes without allocating them, and what is in use without them, which is
/// measured here because this is the process that would run it: on the CPU the process itself (runtime, libraries), on a GPU the driver's
/// context with its kernels, and other processes.
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
    public static PlannedMemory Make(ReformerContext context, Func<MemoryPlan> plan)
    {
        MemoryPlan buffers = plan();
        Warm(context);
        string name = context.Device.Type == DeviceType.Cpu ? "process" : "device";
        return new PlannedMemory(buffers, new MemoryPlanEntry(name, new MemoryUse(context).Bytes));
    }

    /// <summary>A tiny training step makes the process load what a large one loads: code, threads and their stacks, the BLAS's own buffers.</summary>
    private static void Warm(ReformerContext context)
    {
        ReformerConfig tiny = ReformerPresets.Duplication with { HiddenSize = WarmSize, FeedForwardSize = WarmSize, VocabSize = WarmSize };
        var options = new TrainingOptions { Steps = 1, BatchSize = 1, Length = WarmSize };
        using ReformerModel model = ReformerModel.Create(tiny, context, seed: 0);
        using var trainer = new Trainer(model, new RandomTokens(WarmSize), options);
        trainer.RunStep();
    }
}
