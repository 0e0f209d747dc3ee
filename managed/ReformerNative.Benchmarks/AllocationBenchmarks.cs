using BenchmarkDotNet.Attributes;
using ReformerNative.Model;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Benchmarks;

/// <summary>
/// What a training step allocates on the managed heap; the target is nothing. A small model, many steps to a
/// measurement: the diagnoser takes less than 8 KiB for none, which is 8 bytes of a step here.
/// </summary>
[MemoryDiagnoser]
public class AllocationBenchmarks
{
    private const int Steps = 1024;
    private const int Length = 64;
    private const int Width = 32;

    private ReformerContext _context = null!;
    private ReformerModel _model = null!;
    private Trainer _trainer = null!;

    /// <summary>LSH attention with a hash round, or dense attention (0 rounds).</summary>
    [Params(0, 1)]
    public int Rounds { get; set; }

    /// <summary>Makes the model.</summary>
    [GlobalSetup]
    public void Open()
    {
        _context = new ReformerContext(threads: 1);
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

    /// <summary>Steps, of which one is reported.</summary>
    [Benchmark(OperationsPerInvoke = Steps)]
    public void Step()
    {
        for (int i = 0; i < Steps; i++)
        {
            _trainer.RunStep();
        }
    }
}
