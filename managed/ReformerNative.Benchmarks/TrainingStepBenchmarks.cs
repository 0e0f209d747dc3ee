using BenchmarkDotNet.Attributes;
using ReformerNative.Model;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Benchmarks;

/// <summary>
/// One training step (data, forward, backward, clipping, AdamW) of a causal byte-level model: 2 layers, width 256,
/// feed-forward 1,024, 4 heads of 64, chunks of 64.
/// </summary>
public class TrainingStepBenchmarks
{
    private const int Width = 256;

    private ReformerContext _context = null!;
    private ReformerModel _model = null!;
    private Trainer _trainer = null!;

    /// <summary>T.</summary>
    [ParamsSource(nameof(Lengths))]
    public int Length { get; set; }

    /// <summary>LSH attention with 4 or 1 hash rounds, or dense attention (0 rounds).</summary>
    [Params(0, 1, 4)]
    public int Rounds { get; set; }

    /// <summary>Threads; 0 for all processors.</summary>
    [Params(1, 0)]
    public int Threads { get; set; }

    /// <summary>Values of <see cref="Length"/>.</summary>
    public static IEnumerable<int> Lengths => Program.IsSmoke ? [100] : [1024, 4096];

    /// <summary>Makes the model.</summary>
    [GlobalSetup]
    public void Open()
    {
        _context = new ReformerContext(threads: Threads);
        _model = StepModel.Create(_context, Length, Rounds, Width);
        _trainer = StepModel.Trainer(_model, Length);
        _trainer.RunStep(); // makes the buffers
    }

    /// <summary>Frees it.</summary>
    [GlobalCleanup]
    public void Close()
    {
        _trainer.Dispose();
        _model.Dispose();
        _context.Dispose();
    }

    /// <summary>One step.</summary>
    /// <returns>What the trainer says about it.</returns>
    [Benchmark]
    public TrainingStep Step() => _trainer.RunStep();
}
