using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Tests.Training;

namespace ReformerNative.Tests;

/// <summary>The test assembly as a program: a process of its own, which a test may kill or which begins with a
/// call.</summary>
public static class Program
{
    /// <summary>Calls that need the native library and may be the first of a process.</summary>
    internal static IReadOnlyDictionary<string, Func<string>> FirstCalls { get; } =
        new Dictionary<string, Func<string>>
        {
            ["version"] = () => NativeRuntime.Version,
            ["build-info"] = () => NativeRuntime.BuildInfo,
            ["live-objects"] = () => $"{NativeRuntime.LiveObjects}",
            ["device-count"] = () => $"{NativeRuntime.DeviceCount(DeviceType.Cpu, out _)}",
            ["describe"] = () => NativeRuntime.Describe(Device.Cpu),
            ["buckets"] = () => $"{BucketFactors.Automatic(BucketRule.HuggingFace, 4096, 64, 4096).Count}",
            ["geometry"] = () => $"{AttentionOptions.Full(causal: true).Geometry(8).Pairs}",
            ["context"] = () =>
            {
                using var context = new ReformerContext(threads: 1);
                return context.Device.ToString();
            },
        };

    /// <param name="arguments">The name of a task and its arguments.</param>
    /// <returns>The exit code.</returns>
    public static int Main(string[] arguments)
    {
        if (arguments is [KillTests.ChildTask, string directory])
        {
            KillTests.TrainForever(directory);
        }

        if (arguments is [string name] && FirstCalls.TryGetValue(name, out Func<string>? call))
        {
            Console.WriteLine(call());
            return 0;
        }

        Console.Error.WriteLine(
            $"expected {KillTests.ChildTask} DIRECTORY or a call, found {string.Join(' ', arguments)}");
        return 2;
    }
}
