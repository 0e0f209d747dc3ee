using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Reports;
using BenchmarkDotNet.Running;
using BenchmarkDotNet.Toolchains.InProcess.Emit;

namespace ReformerNative.Benchmarks;

/// <summary>
/// Entry point: BenchmarkDotNet's own options (<c>--filter</c>, <c>--job</c>, <c>--list</c>), and <c>--smoke</c>, which
/// runs everything once with tiny sizes and fails when a benchmark does.
/// </summary>
internal static class Program
{
    private const string Smoke = "--smoke";

    /// <summary>Whether sizes are tiny.</summary>
    public static bool IsSmoke { get; private set; }

    public static int Main(string[] args)
    {
        IsSmoke = args.Contains(Smoke);
        if (IsSmoke)
        {
            args = [.. args.Where(argument => argument != Smoke), "--job", "Dry"];
        }

        if (!IsAny(args, "--filter", "-f", "--list", "--help"))
        {
            args = [.. args, "--filter", "*"];
        }

        if (!IsAny(args, "--job", "-j", "--iterationCount"))
        {
            // Work of milliseconds and more varies little from run to run.
            args = [.. args, "--warmupCount", "1", "--iterationCount", "5"];
        }

        Summary[] summaries = [.. BenchmarkSwitcher.FromAssembly(typeof(Program).Assembly).Run(args, Config())];
        bool failed = summaries.Any(summary =>
            summary.HasCriticalValidationErrors || summary.Reports.Any(report => !report.Success)
        );
        return failed ? 1 : 0;
    }

    private static bool IsAny(string[] args, params string[] options) => args.Any(options.Contains);

    /// <summary>
    /// In this process: the work is native, so a process per benchmark would isolate nothing, and nothing is built at
    /// run time.
    /// </summary>
    private static ManualConfig Config() => ManualConfig.Create(DefaultConfig.Instance)
        .AddJob(Job.Default.WithToolchain(InProcessEmitToolchain.Instance).AsMutator())
        .WithArtifactsPath(Path.Combine("artifacts", "benchmarks"));
}
