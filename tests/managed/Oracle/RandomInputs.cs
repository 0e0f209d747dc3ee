namespace ReformerNative.Oracle;

/// <summary>
/// Seeded random inputs. Numbers are those that float32 can hold, so that both sides of a comparison get the same.
/// </summary>
public static class RandomInputs
{
    public static double NextNormal(this Random random) =>
        (float)(Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble()));

    public static double[] Normals(this Random random, int count, double scale = 1, double mean = 0) =>
        [.. Enumerable.Range(0, count).Select(_ => (double)(float)(mean + scale * random.NextNormal()))];

    public static int[] Integers(this Random random, int count, int below) =>
        [.. Enumerable.Range(0, count).Select(_ => random.Next(below))];

    public static bool[] Mask(this Random random, int count, double real = 0.7) =>
        [.. Enumerable.Range(0, count).Select(_ => random.NextDouble() < real)];
}
