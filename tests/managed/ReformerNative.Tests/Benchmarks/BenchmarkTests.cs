using ReformerNative.Benchmarks;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Tests.OracleComparison;

namespace ReformerNative.Tests.Benchmarks;

/// <summary>The benchmarks compare implementations that compute the same, and run.</summary>
public sealed class BenchmarkTests
{
    private const int Heads = 3;
    private const int HeadSize = 12;
    private const int Chunk = 8;

    /// <param name="length">Within a chunk, one past some chunks, many. Where a query sees one key, gradients are
    /// rounding errors alone.</param>
    /// <param name="rounds">0 for dense attention.</param>
    /// <param name="causal">Whether later positions are hidden.</param>
    /// <param name="threads">Of both.</param>
    [Test]
    public void ManagedAttention_NumbersAreTheNativeOps(
        [Values(3, 8, 33, 128)] int length, [Values(0, 1, 2, 4)] int rounds, [Values] bool causal,
        [Values(1, 2)] int threads)
    {
        using var context = new ReformerContext(threads: threads);
        AttentionOptions options =
            rounds == 0 ? AttentionOptions.Full(causal) : AttentionProblem.Lsh(length, Chunk, rounds, causal);
        using var problem = new AttentionProblem(context, options, length, Heads, HeadSize);
        for (int run = 0; run < 2; run++) // nothing is left behind by the first
        {
            problem.Native(backward: true);
            problem.Managed(backward: true);
            AssertClose("out", problem.ManagedOut, problem.Out, NativeRun.ForwardLimit);
            AssertClose("log_sum_exp", problem.ManagedLogSumExp, problem.LogSumExp, NativeRun.ForwardLimit);
            AssertClose("grad q", problem.ManagedGradQ, problem.GradQ, NativeRun.GradientLimit);
            AssertClose("grad v", problem.ManagedGradV, problem.GradV, NativeRun.GradientLimit);
            if (problem.GradK is { } gradK)
            {
                AssertClose("grad k", problem.ManagedGradK, gradK, NativeRun.GradientLimit);
            }
        }
    }

    [Test]
    public void ManagedAttention_OtherForms_AreRefused()
    {
        AttentionOptions paper = AttentionOptions.Lsh(
            AttentionPreset.Paper, causal: true, Chunk, rounds: 1, new BucketFactors(4));
        Assert.That(
            () => new TensorAttention(paper, 16, Heads, HeadSize, threads: 1), Throws.TypeOf<NotSupportedException>());
        Assert.That(
            () =>
                new TensorAttention(
                    AttentionOptions.Full(causal: true) with
                    {
                        Dropout = 0.1f,
                    },
                    16,
                    Heads,
                    HeadSize,
                    threads: 1
                ),
            Throws.TypeOf<NotSupportedException>()
        );
    }

    /// <summary>Every benchmark once, with tiny sizes; nothing is timed.</summary>
    [Test]
    public void Program_Smoke_RunsEveryBenchmark()
    {
        using var directory = new TemporaryDirectory();
        (int code, string output, string errors) = Repository.Run(
            "dotnet", Path.Combine(AppContext.BaseDirectory, "ReformerNative.Benchmarks.dll"), "--smoke", "--artifacts",
            directory.Path);
        Assert.That(code, Is.Zero, output + errors);
        foreach (
            string name in (string[])["NativeLsh8", "ManagedLsh4", "LayerNormOfEight", "TrainingStepBenchmarks.Step"])
        {
            Assert.That(output, Does.Contain(name));
        }
    }

    private static void AssertClose(string name, float[] managed, Tensor native, double limit)
    {
        float[] expected = native.ToArray<float>();
        Assert.That(managed, Has.Length.EqualTo(expected.Length), name);
        double largest = expected.Where(float.IsFinite).Select(x => Math.Abs((double)x)).DefaultIfEmpty(0).Max();
        for (int i = 0; i < expected.Length; i++)
        {
            Assert.That(
                managed[i],
                float.IsFinite(expected[i]) ? Is.EqualTo(expected[i]).Within(limit * largest) : Is.EqualTo(expected[i]),
                $"{name}[{i}]");
        }
    }
}
