using ReformerNative.Tests.Training;

namespace ReformerNative.Tests;

/// <summary>The test assembly as a program: a process that a test may kill.</summary>
public static class Program
{
    /// <param name="arguments">The name of a task and its arguments.</param>
    /// <returns>The exit code.</returns>
    public static int Main(string[] arguments)
    {
        if (arguments is [KillTests.ChildTask, string directory])
        {
            KillTests.TrainForever(directory);
        }

        Console.Error.WriteLine($"expected {KillTests.ChildTask} DIRECTORY, found {string.Join(' ', arguments)}");
        return 2;
    }
}
