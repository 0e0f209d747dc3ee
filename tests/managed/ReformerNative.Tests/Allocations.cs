namespace ReformerNative.Tests;

/// <summary>What code allocates on the managed heap in a steady state.</summary>
internal static class Allocations
{
    /// <summary>
    /// Fails if a step allocates. The runtime too may allocate on this thread, once (5,240 bytes were seen in one of
    /// several thousand steps), so of three rows of steps two must be clean.
    /// </summary>
    /// <param name="steps">Steps of a row; as many go before, in which code is compiled and buffers are made.</param>
    /// <param name="step">The step.</param>
    /// <param name="name">Of the step, for the message.</param>
    public static void AssertNone(int steps, Action step, string name = "step")
    {
        long[] allocated = new long[4];
        for (int row = 0; row < allocated.Length; row++)
        {
            long before = GC.GetAllocatedBytesForCurrentThread();
            for (int i = 0; i < steps; i++)
            {
                step();
            }

            allocated[row] = GC.GetAllocatedBytesForCurrentThread() - before;
        }

        Assert.That(
            allocated[1..].Count(bytes => bytes != 0),
            Is.AtMost(1),
            $"{name}: rows of {steps} that allocate, of {string.Join(", ", allocated[1..])} bytes");
    }
}
