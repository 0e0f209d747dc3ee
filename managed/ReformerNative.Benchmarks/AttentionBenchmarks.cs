using BenchmarkDotNet.Attributes;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Benchmarks;

/// <summary>
/// Causal attention of 8 heads of 64, chunks of 64: straightforward C#, our dense attention, our LSH attention.
/// </summary>
[MemoryDiagnoser]
public class AttentionBenchmarks
{
    private const int Heads = 8;
    private const int HeadSize = 64;
    private const int Chunk = 64;

    private readonly Dictionary<int, AttentionProblem> _lsh = [];
    private ReformerContext _context = null!;
    private AttentionProblem _dense = null!;

    /// <summary>T.</summary>
    [ParamsSource(nameof(Lengths))]
    public int Length { get; set; }

    /// <summary>Threads of either; 0 for all processors.</summary>
    [Params(1, 0)]
    public int Threads { get; set; }

    /// <summary>Whether the backward pass follows.</summary>
    [Params(false, true)]
    public bool Backward { get; set; }

    /// <summary>Values of <see cref="Length"/>.</summary>
    public static IEnumerable<int> Lengths => Program.IsSmoke ? [100] : [1024, 4096, 16384];

    /// <summary>Makes the inputs.</summary>
    [GlobalSetup]
    public void Open()
    {
        _context = new ReformerContext(threads: Threads);
        _dense = new AttentionProblem(_context, AttentionOptions.Full(causal: true), Length, Heads, HeadSize);
        foreach (int rounds in (int[])[1, 2, 4, 8])
        {
            _lsh[rounds] = new AttentionProblem(
                _context, AttentionProblem.Lsh(Length, Chunk, rounds, causal: true), Length, Heads, HeadSize);
        }
    }

    /// <summary>Frees them.</summary>
    [GlobalCleanup]
    public void Close()
    {
        _dense.Dispose();
        foreach (AttentionProblem problem in _lsh.Values)
        {
            problem.Dispose();
        }

        _lsh.Clear();
        _context.Dispose();
    }

    /// <summary>Dense attention in C#.</summary>
    [Benchmark(Baseline = true)]
    public void ManagedDense() => _dense.Managed(Backward);

    /// <summary>LSH attention in C#, 1 hash round.</summary>
    [Benchmark]
    public void ManagedLsh1() => _lsh[1].Managed(Backward);

    /// <summary>LSH attention in C#, 4 hash rounds.</summary>
    [Benchmark]
    public void ManagedLsh4() => _lsh[4].Managed(Backward);

    /// <summary>Our dense attention.</summary>
    [Benchmark]
    public void NativeDense() => _dense.Native(Backward);

    /// <summary>Our LSH attention, 1 hash round.</summary>
    [Benchmark]
    public void NativeLsh1() => _lsh[1].Native(Backward);

    /// <summary>Our LSH attention, 2 hash rounds.</summary>
    [Benchmark]
    public void NativeLsh2() => _lsh[2].Native(Backward);

    /// <summary>Our LSH attention, 4 hash rounds.</summary>
    [Benchmark]
    public void NativeLsh4() => _lsh[4].Native(Backward);

    /// <summary>Our LSH attention, 8 hash rounds.</summary>
    [Benchmark]
    public void NativeLsh8() => _lsh[8].Native(Backward);
}
