using System.Diagnostics;
using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using ReformerNative.Model;
using ReformerNative.Tensors;

namespace ReformerNative.Cli;

/// <summary>
/// How fast this machine reads the weights of a model: the bound of generation, which needs each once for every token.
/// </summary>
internal sealed class WeightReading
{
    private const long PartFloats = 1 << 16;

    private readonly TensorView[] _parts;
    private readonly int _threads;
    private readonly List<double> _seconds = [];

    public WeightReading(ReformerModel model)
    {
        _threads = model.Context.Threads;
        _parts = [.. model.Parameters.SelectMany(parameter => Parts(parameter.Value))];
        Bytes = _parts.Sum(part => part.ByteCount);
    }

    public long Bytes { get; }

    /// <summary>Of every reading.</summary>
    public IReadOnlyList<double> Seconds => _seconds;

    /// <summary>Sums all weights with the context's threads.</summary>
    public void Read()
    {
        long started = Stopwatch.GetTimestamp();
        float sum = 0;
        Parallel.For(0, _threads, thread =>
        {
            float own = 0;
            for (int i = _parts.Length * thread / _threads; i < _parts.Length * (thread + 1) / _threads; i++)
            {
                own += Sum(_parts[i].AsSpan<float>());
            }

            Volatile.Write(ref sum, own); // so that nothing is left out
        });
        _seconds.Add(Stopwatch.GetElapsedTime(started).TotalSeconds);
    }

    private static IEnumerable<TensorView> Parts(TensorView view)
    {
        for (long start = 0; start < view.ElementCount; start += PartFloats)
        {
            yield return view.Part(start, new TensorShape(Math.Min(PartFloats, view.ElementCount - start)));
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float Sum(ReadOnlySpan<float> values)
    {
        ReadOnlySpan<Vector<float>> vectors = MemoryMarshal.Cast<float, Vector<float>>(values);
        Vector<float> a = default;
        Vector<float> b = default;
        Vector<float> c = default;
        Vector<float> d = default;
        int i = 0;
        for (; i + 4 <= vectors.Length; i += 4)
        {
            a += vectors[i];
            b += vectors[i + 1];
            c += vectors[i + 2];
            d += vectors[i + 3];
        }

        float sum = Vector.Sum(a + b + (c + d));
        for (int j = i * Vector<float>.Count; j < values.Length; j++)
        {
            sum += values[j];
        }

        return sum;
    }
}
