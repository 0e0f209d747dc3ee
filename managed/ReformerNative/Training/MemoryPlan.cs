using System.Globalization;
using System.Text;
using ReformerNative.Model;
using ReformerNative.Tensors;

namespace ReformerNative.Training;

/// <summary>Bytes of one kind of buffer.</summary>
/// <param name="Name">What it holds.</param>
/// <param name="Bytes">How much memory it takes.</param>
public readonly record struct MemoryPlanEntry(string Name, long Bytes);

/// <summary>
/// The native memory that a model will take, found without allocating any of it: a plan goes through the code that
/// allocates for a run. Not counted: the process itself (runtime and libraries) and the host's copy of a batch.
/// </summary>
public sealed class MemoryPlan
{
    private MemoryPlan(IReadOnlyList<MemoryPlanEntry> entries, IReadOnlyList<KeepActivations> kept)
    {
        Entries = entries;
        Kept = kept;
        TotalBytes = entries.Sum(entry => entry.Bytes);
    }

    /// <summary>Each kind of buffer, in the order of allocation.</summary>
    public IReadOnlyList<MemoryPlanEntry> Entries { get; }

    /// <summary>All of them.</summary>
    public long TotalBytes { get; }

    /// <summary>What each layer keeps for the backward pass.</summary>
    public IReadOnlyList<KeepActivations> Kept { get; }

    /// <summary>Plans a training run within its memory budget.</summary>
    /// <param name="config">The model.</param>
    /// <param name="context">Where it would run; scratch depends on the device and its threads.</param>
    /// <param name="options">Batch, length, optimizer, memory budget.</param>
    /// <returns>The plan.</returns>
    /// <exception cref="ArgumentException">The budget is less than what a run takes that keeps nothing.</exception>
    public static MemoryPlan ForTraining(ReformerConfig config, ReformerContext context, TrainingOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        return ForTraining(
            config,
            context,
            options,
            (pass, least) =>
                options.MemoryBudget is long budget
                    ? MemoryBudget.Spend(budget, least, config.AttnLayers.Count, pass.Stack.Kept.Bytes)
                    : null
        );
    }

    /// <summary>Plans a training run that keeps the same of every layer, whatever its memory budget.</summary>
    /// <param name="config">The model.</param>
    /// <param name="context">Where it would run; scratch depends on the device and its threads.</param>
    /// <param name="options">Batch, length, optimizer.</param>
    /// <param name="keep">What each layer keeps.</param>
    /// <returns>The plan.</returns>
    public static MemoryPlan ForTraining(
        ReformerConfig config, ReformerContext context, TrainingOptions options, KeepActivations keep)
    {
        ArgumentNullException.ThrowIfNull(options);
        return ForTraining(config, context, options, (_, _) => [.. config.AttnLayers.Select(_ => keep)]);
    }

    /// <summary>Plans evaluation or generation.</summary>
    /// <param name="config">The model.</param>
    /// <param name="context">Where it would run; scratch depends on the device and its threads.</param>
    /// <param name="batchSize">B, examples of a batch.</param>
    /// <param name="length">T, tokens of an example.</param>
    /// <param name="rounds">Hash rounds; null for those of the configuration.</param>
    /// <returns>The plan.</returns>
    public static MemoryPlan ForEvaluation(
        ReformerConfig config, ReformerContext context, int batchSize, int length, int? rounds = null)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(batchSize, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(length, 1);
        config = Resolve(config, length);
        var shape = new PassShape(
            batchSize, length, rounds ?? config.NumHashes, FullAttention: false, Backward: false, Inspect: false);
        return Make(config, context, shape, 0, 0, (_, _) => null);
    }

    /// <summary>A table of the entries.</summary>
    /// <returns>One line for each and one for the sum, in MiB.</returns>
    public override string ToString()
    {
        var text = new StringBuilder();
        foreach (MemoryPlanEntry entry in Entries.Append(new MemoryPlanEntry("total", TotalBytes)))
        {
            text.AppendLine(CultureInfo.InvariantCulture, $"{entry.Name,-20}{entry.Bytes / 1048576.0,14:F2} MiB");
        }

        return text.ToString();
    }

    private static MemoryPlan ForTraining(
        ReformerConfig config, ReformerContext context, TrainingOptions options,
        Func<ModelPass, long, IReadOnlyList<KeepActivations>?> keep)
    {
        options.Validate();
        config = Resolve(config, options.Length);
        var shape = new PassShape(
            options.BatchSize, options.Length, config.NumHashes, options.FullAttention, Backward: true, Inspect: false);
        return Make(
            config, context, shape, Optimizer.StateBytes(config, options),
            Optimizer.WorkspaceBytes(config, context, options), keep);
    }

    private static ReformerConfig Resolve(ReformerConfig config, int length)
    {
        ArgumentNullException.ThrowIfNull(config);
        config.Validate();
        return LayerForms.WithBuckets(config, length);
    }

    /// <summary>
    /// Plans; <paramref name="keep"/> decides, from the pass that keeps nothing and what it takes in all, what layers
    /// keep.
    /// </summary>
    private static MemoryPlan Make(
        ReformerConfig config, ReformerContext context, PassShape shape, long optimizerBytes, long optimizerScratch,
        Func<ModelPass, long, IReadOnlyList<KeepActivations>?> keep)
    {
        ArgumentNullException.ThrowIfNull(context);
        var entries = new List<MemoryPlanEntry>();
        void Add(string name, long bytes)
        {
            int index = entries.FindIndex(entry => entry.Name == name);
            if (index >= 0)
            {
                entries[index] = new MemoryPlanEntry(name, checked(entries[index].Bytes + bytes));
            }
            else if (bytes > 0)
            {
                entries.Add(new MemoryPlanEntry(name, bytes));
            }
        }

        using var parameters = new ModelParameters(config, context: null);
        Add("parameters", parameters.Bytes);
        if (shape.Backward)
        {
            parameters.EnsureGradients();
            Add("gradients", parameters.Bytes);
            Add("optimizer", optimizerBytes);
        }

        ModelPass Pass(IReadOnlyList<KeepActivations>? kept) =>
            new(
                config,
                parameters,
                shape,
                kept,
                (name, size, type) =>
                {
                    var view = TensorView.Meta(size, type);
                    Add(name, view.ByteCount);
                    return view;
                }
            );
        int before = entries.Count;
        ModelPass pass = Pass(null);
        long scratch = Math.Max(pass.WorkspaceBytes(context), optimizerScratch);
        IReadOnlyList<KeepActivations>? kept = keep(pass, checked(entries.Sum(entry => entry.Bytes) + scratch));
        if (kept is not null)
        {
            entries.RemoveRange(before, entries.Count - before);
            scratch = Math.Max(Pass(kept).WorkspaceBytes(context), optimizerScratch);
        }

        Add("workspace", scratch);
        return new MemoryPlan(entries, kept ?? new KeepActivations[config.AttnLayers.Count]);
    }
}
