using System.Runtime.InteropServices;
using ReformerNative.Tensors;

namespace ReformerNative.Tests.OracleComparison;

/// <summary>
/// One run of a native op. Every tensor lies between guards, at an odd offset; outputs start as NaN.
/// <see cref="Expect"/> compares with float64 and <see cref="CheckMemory"/> shows that inputs and guards are as they
/// were.
/// </summary>
internal sealed class NativeRun : IDisposable
{
    /// <summary>Largest difference allowed, relative to the largest magnitude of the tensor.</summary>
    public const double ForwardLimit = 1e-5;

    public const double GradientLimit = 2e-5;

    private const int Guard = 5; // elements; odd, so that nothing is aligned beyond its own size
    private static readonly Dictionary<string, double> s_worst = [];
    private readonly List<IStored> _stored = [];

    public NativeRun(int threads = 2)
    {
        Context = new(threads: threads);
        Workspace = new(Context);
    }

    private interface IStored : IDisposable
    {
        void Check();
    }

    /// <summary>The largest error seen of each kind of tensor, over all tests of this run.</summary>
    public static IReadOnlyDictionary<string, double> Worst => s_worst;

    public ReformerContext Context { get; }

    public Workspace Workspace { get; }

    public TensorView Input(double[]? values, params long[] shape) =>
        values is null ? default : Store([.. values.Select(v => (float)v)], shape, float.NaN, isInput: true);

    public TensorView Input(int[] values, params long[] shape) => Store(values, shape, int.MinValue, isInput: true);

    public TensorView Input(bool[]? values, params long[] shape) =>
        values is null
            ? default
            : Store([.. values.Select(v => v ? (byte)1 : (byte)0)], shape, (byte)0xCD, isInput: true);

    /// <summary>What the op has to write as a whole.</summary>
    public TensorView Output(params long[] shape) => Filled(float.NaN, shape);

    public TensorView OutputIntegers(params long[] shape) =>
        Store(Enumerable.Repeat(int.MinValue, Count(shape)).ToArray(), shape, int.MinValue, false);

    public TensorView OutputDoubles(params long[] shape) =>
        Store(Enumerable.Repeat(double.NaN, Count(shape)).ToArray(), shape, double.NaN, false);

    /// <summary>What the op adds to: holds ones.</summary>
    public TensorView Accumulator(params long[] shape) => Filled(1, shape);

    /// <summary>What the op updates in place.</summary>
    public TensorView InPlace(double[] values, params long[] shape) =>
        Store([.. values.Select(v => (float)v)], shape, float.NaN, isInput: false);

    public TensorView Zeros(DType type, params long[] shape) =>
        type == DType.Int64 ? Store(new long[Count(shape)], shape, long.MinValue, false) : Filled(0, shape);

    /// <summary>
    /// Fails unless actual is within limit of expected, relative to expected's largest finite magnitude; infinities
    /// must be equal. Floor is an absolute difference that is always allowed: the rounding of terms that cancel.
    /// </summary>
    public static void Expect(string name, TensorView actual, double[] expected, double limit, double floor = 0)
    {
        double[] values =
            actual.DType == DType.Float64
                ? actual.ToArray<double>()
                : [.. actual.ToArray<float>().Select(v => (double)v)];
        Assert.That(values, Has.Length.EqualTo(expected.Length), name);
        double largest = expected.Where(double.IsFinite).Select(Math.Abs).DefaultIfEmpty(0).Max();
        double allowed = Math.Max(limit * largest, floor), worst = 0;
        for (int i = 0; i < values.Length; i++)
        {
            double error = values[i].Equals(expected[i]) ? 0 : Math.Abs(values[i] - expected[i]);
            if (!(error <= allowed))
            {
                Assert.Fail(
                    $"{name}[{i}] is {values[i]:r}, expected {expected[i]:r} within {allowed:e1}; the largest is "
                        + $"{largest:r}"
                );
            }

            worst = Math.Max(worst, error);
        }

        string kind = name.Split(' ')[0];
        lock (s_worst)
        {
            s_worst[kind] = Math.Max(s_worst.GetValueOrDefault(kind), limit * largest > floor ? worst / largest : 0);
        }
    }

    /// <summary>The same for a tensor that was an <see cref="Accumulator"/>: ones plus the gradient.</summary>
    public static void ExpectAdded(string name, TensorView actual, double[] gradient) =>
        Expect(name, actual, [.. gradient.Select(g => 1 + g)], GradientLimit);

    /// <summary>Fails unless both tensors of one type hold the same bits.</summary>
    public static void ExpectSameBits<T>(string name, TensorView actual, T[] expected)
        where T : unmanaged
    {
        T[] values = actual.ToArray<T>();
        if (!HaveSameBits(values, expected))
        {
            // Slower, but it says where.
            Assert.That(values, Is.EqualTo(expected), name);
            Assert.Fail($"{name}: zeros of different signs or different NaNs");
        }
    }

    /// <summary>Fails if the op wrote outside its outputs.</summary>
    public void CheckMemory()
    {
        foreach (var stored in _stored)
        {
            stored.Check();
        }
    }

    public void Dispose()
    {
        foreach (var stored in _stored)
        {
            stored.Dispose();
        }

        Workspace.Dispose();
        Context.Dispose();
    }

    private static bool HaveSameBits<T>(T[] left, T[] right)
        where T : unmanaged => MemoryMarshal.AsBytes<T>(left).SequenceEqual(MemoryMarshal.AsBytes<T>(right));

    private static int Count(long[] shape) => (int)shape.Aggregate(1L, (product, n) => product * n);

    private TensorView Filled(float value, long[] shape) =>
        Store(Enumerable.Repeat(value, Count(shape)).ToArray(), shape, float.NaN, false);

    private TensorView Store<T>(T[] values, long[] shape, T guard, bool isInput)
        where T : unmanaged
    {
        T[] guards = [.. Enumerable.Repeat(guard, Guard)];
        var tensor = Context.FromValues<T>([.. guards, .. values, .. guards], new(values.Length + (2 * Guard)));
        _stored.Add(new Stored<T>(tensor, values, guards, isInput));
        return tensor.View.Part(Guard, new(shape));
    }

    private sealed class Stored<T>(Tensor tensor, T[] values, T[] guards, bool isInput) : IStored
        where T : unmanaged
    {
        public void Check()
        {
            T[] now = tensor.ToArray<T>();
            Assert.That(HaveSameBits(now[..Guard], guards), "memory before a tensor was written to");
            Assert.That(HaveSameBits(now[^Guard..], guards), "memory behind a tensor was written to");
            Assert.That(!isInput || HaveSameBits(now[Guard..^Guard], values), "an input was written to");
        }

        public void Dispose() => tensor.Dispose();
    }
}

/// <summary>Prints the largest errors of all comparisons at their end.</summary>
[SetUpFixture]
public sealed class WorstErrors
{
    [OneTimeTearDown]
    public void Print()
    {
        foreach (var (kind, error) in NativeRun.Worst.OrderBy(e => e.Key, StringComparer.Ordinal))
        {
            TestContext.Progress.WriteLine($"largest relative error, {kind}: {error:e1}");
        }
    }
}
