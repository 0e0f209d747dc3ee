using BenchmarkDotNet.Attributes;
using ReformerNative.Interop;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Benchmarks;

/// <summary>
/// What a call costs when there is next to nothing to compute; the target is below 1 µs and no allocation.
/// </summary>
[MemoryDiagnoser]
public class InteropBenchmarks
{
    private readonly List<Tensor> _tensors = [];
    private ReformerContext _context = null!;
    private Workspace _workspace = null!;

    /// <summary>Makes tensors of 8 floats.</summary>
    [GlobalSetup]
    public void Open()
    {
        _context = new ReformerContext(threads: 1);
        _workspace = new Workspace(_context);
        for (int i = 0; i < 4; i++)
        {
            _tensors.Add(_context.Zeros(new TensorShape(1, 8)));
        }
    }

    /// <summary>Frees them.</summary>
    [GlobalCleanup]
    public void Close()
    {
        _tensors.ForEach(tensor => tensor.Dispose());
        _tensors.Clear();
        _workspace.Dispose();
        _context.Dispose();
    }

    /// <summary>The transition into native code and back, alone.</summary>
    /// <returns>The version.</returns>
    [Benchmark(Baseline = true)]
    public uint PInvoke() => NativeMethods.rfn_abi_version();

    /// <summary>One call with a handle: validation of 5 tensors, then AdamW on 8 numbers.</summary>
    [Benchmark]
    public void AdamWOfEight() => new AdamW
    {
        LearningRate = 1e-3f,
        Beta1 = 0.9f,
        Beta2 = 0.999f,
        Epsilon = 1e-8f,
        Step = 1,
        Parameters = [_tensors[0]],
        Gradients = [_tensors[1]],
        Moments1 = [_tensors[2]],
        Moments2 = [_tensors[3]],
    }.Run(_context);

    /// <summary>Two calls, the size of the workspace and the op: layer norm of one row of 8.</summary>
    [Benchmark]
    public void LayerNormOfEight() => new LayerNorm
    {
        Epsilon = 1e-6f,
        X = _tensors[0],
        Weight = _tensors[1].Reshape(new TensorShape(8)),
        Bias = _tensors[2].Reshape(new TensorShape(8)),
        Y = _tensors[3],
    }.Forward(_workspace);
}
