using System.Diagnostics;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Cli;

/// <summary>Times of work on a context.</summary>
internal static class Measure
{
    private const int SgemmSize = 2048;
    private const int SgemmRuns = 5;

    public static double Seconds(ReformerContext context, Action work)
    {
        context.Synchronize();
        long started = Stopwatch.GetTimestamp();
        work();
        context.Synchronize();
        return Stopwatch.GetElapsedTime(started).TotalSeconds;
    }

    public static double Median(IEnumerable<double> values)
    {
        double[] sorted = [.. values.Order()];
        int middle = sorted.Length / 2;
        return sorted.Length % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
    }

    /// <summary>
    /// GFLOP/s of the best of some products of 2048³ with the context's threads and precision: the ceiling of this
    /// machine at this moment. Null for a simulated GPU, which would take hours for them.
    /// </summary>
    public static double? Sgemm(ReformerContext context)
    {
        if (context.Device.Type == DeviceType.CudaOnHost)
        {
            return null;
        }

        var shape = new TensorShape(SgemmSize, SgemmSize);
        using var x = new Tensor(context, shape);
        using var weight = new Tensor(context, shape);
        using var y = new Tensor(context, shape);
        using var workspace = new Workspace(context);
        Normal(context, x, 1);
        Normal(context, weight, 2);
        var product = new Linear { X = x, Weight = weight, Y = y };
        product.Forward(workspace);
        double best = Enumerable.Range(0, SgemmRuns).Min(_ => Seconds(context, () => product.Forward(workspace)));
        return 2.0 * SgemmSize * SgemmSize * SgemmSize / best / 1e9;
    }

    /// <summary>A line about that product.</summary>
    public static string SgemmLine(ReformerContext context, double? gflops) =>
        gflops is double rate
            ? Output.Text($"{rate:F1} GFLOP/s on {Output.Place(context)}")
            : $"not measured on {context.Device}";

    /// <summary>The rate of some work, beside that of the product.</summary>
    public static string Rate(double flops, double seconds, double? gflops)
    {
        double rate = flops / seconds / 1e9;
        return Output.Text($"{rate:F1} GFLOP/s")
            + (gflops is double most ? Output.Text($", {100 * rate / most:F1} % of the product's") : "");
    }

    public static void Normal(ReformerContext context, TensorView destination, ulong seed) =>
        new RandomNormal
        {
            Site = RandomSite.Data,
            Seed = seed,
            StandardDeviation = 1,
            Destination = destination,
        }.Run(context);
}
