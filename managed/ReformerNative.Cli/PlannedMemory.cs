using ReformerNative.Model;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Cli;

/// <summary>
/// What a run will take: the buffers, computed from shapes without allocating them, and the process itself (runtime, libraries), which is
/// measured here because this is the process that would run it.
/// </summary>
internal sealed class PlannedMemory
{
    private const int WarmSize = 64;

    private PlannedMemory(MemoryPlan plan, long processBytes)
    {
        Plan = plan;
        ProcessBytes = processBytes;
    }

    public MemoryPlan Plan { get; }

    public long ProcessBytes { get; }

    public long TotalBytes => Plan.TotalBytes + ProcessBytes;

    public IEnumerable<MemoryPlanEntry> Entries => Plan.Entries.Prepend(new MemoryPlanEntry("process", ProcessBytes));

    /// <summary>Plans; call it before anything else is allocated.</summary>
    public static PlannedMemory Make(ReformerContext context, Func<MemoryPlan> plan)
    {
        MemoryPlan buffers = plan();
        Warm(context);
        return new PlannedMemory(buffers, ProcessMemory.ResidentBytes);
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
