namespace ReformerNative.Oracle.Tests;

/// <summary>Holds gradients to central differences.</summary>
internal sealed class FiniteDifferences(Random random)
{
    private const double Step = 1e-5;
    private const double Limit = 1e-6;

    /// <summary>
    /// Compares, for each tensor, the difference quotient of the loss along two random directions and at up to six
    /// single elements with the gradient. Both are relative to the gradient's size: its length along a direction, its
    /// largest element at an element.
    /// </summary>
    public void Check(Func<double> loss, params (string Name, double[] Values, double[] Gradient)[] tensors)
    {
        foreach (var (name, values, gradient) in tensors)
        {
            Assert.That(gradient, Has.Length.EqualTo(values.Length), name);
            for (var i = 0; i < 2; i++)
            {
                var direction = values.Select(_ => random.NextNormal()).ToArray();
                var size = Math.Sqrt(gradient.Sum(g => g * g));
                Compare($"{name} along direction {i}", loss, values, gradient, direction, size);
            }

            foreach (var element in Enumerable.Range(0, values.Length).OrderBy(_ => random.Next()).Take(6))
            {
                var direction = new double[values.Length];
                direction[element] = 1;
                Compare($"{name}[{element}]", loss, values, gradient, direction, gradient.Max(Math.Abs));
            }
        }
    }

    private static void Compare(
        string what, Func<double> loss, double[] values, double[] gradient, double[] direction, double size)
    {
        var original = values.ToArray();
        double At(double distance)
        {
            for (var i = 0; i < values.Length; i++)
            {
                values[i] = original[i] + distance * direction[i];
            }

            return loss();
        }

        var quotient = (At(Step) - At(-Step)) / (2 * Step);
        original.CopyTo(values, 0);
        var expected = gradient.Zip(direction, (g, d) => g * d).Sum();

        // A loss of the order of 1 leaves 1e-16 / Step of noise, for gradients that vanish.
        Assert.That(
            Math.Abs(quotient - expected), Is.LessThanOrEqualTo(Limit * size + 1e-9),
            $"{what}: quotient {quotient}, gradient {expected}");
    }
}
