namespace ReformerNative.Oracle;

/// <summary>The activations of RFN_ACTIVATION_*, with the same values.</summary>
public enum Activation
{
    None,
    Relu,
    GeluErf,
    GeluTanh,
    Silu,
    Tanh,
}

/// <summary>Activation functions and their derivatives.</summary>
public static class Activations
{
    private static readonly double s_tanhScale = Math.Sqrt(2 / Math.PI);

    public static double Value(Activation activation, double x) => activation switch
    {
        Activation.Relu => Math.Max(0, x),
        Activation.GeluErf => x * Phi(x),
        Activation.GeluTanh => x / 2 * (1 + Math.Tanh(s_tanhScale * (x + 0.044715 * x * x * x))),
        Activation.Silu => x * Sigmoid(x),
        Activation.Tanh => Math.Tanh(x),
        _ => x,
    };

    public static double Slope(Activation activation, double x)
    {
        switch (activation)
        {
            case Activation.Relu:
                return x > 0 ? 1 : 0;
            case Activation.GeluErf:
                return Phi(x) + x * Math.Exp(-x * x / 2) / Math.Sqrt(2 * Math.PI);
            case Activation.GeluTanh:
                var tanh = Math.Tanh(s_tanhScale * (x + 0.044715 * x * x * x));
                return (1 + tanh) / 2 + x / 2 * (1 - tanh * tanh) * s_tanhScale * (1 + 3 * 0.044715 * x * x);
            case Activation.Silu:
                return Sigmoid(x) * (1 + x * (1 - Sigmoid(x)));
            case Activation.Tanh:
                return 1 - Math.Tanh(x) * Math.Tanh(x);
            default:
                return 1;
        }
    }

    /// <summary>
    /// The error function by its series of positive terms, 2/sqrt(pi) exp(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!!.
    /// </summary>
    public static double Erf(double x)
    {
        if (Math.Abs(x) > 6)
        {
            return Math.Sign(x);
        }

        double term = x, sum = 0;
        for (var n = 0; n < 200; n++)
        {
            sum += term;
            term *= 2 * x * x / (2 * n + 3);
        }

        return 2 / Math.Sqrt(Math.PI) * Math.Exp(-x * x) * sum;
    }

    private static double Phi(double x) => (1 + Erf(x / Math.Sqrt(2))) / 2;

    private static double Sigmoid(double x) => 1 / (1 + Math.Exp(-x));
}

/// <summary>Gradients of a linear layer; Bias is null without one.</summary>
public sealed record LinearGradients(double[] X, double[] Weight, double[]? Bias);

/// <summary>y = activation(x weight^T + bias) for x [N, inputs], weight [outputs, inputs].</summary>
public static class Linear
{
    public static double[] Forward(
        double[] x, double[] weight, double[]? bias, int inputs, Activation activation = Activation.None)
    {
        var outputs = weight.Length / inputs;
        var y = new double[x.Length / inputs * outputs];
        for (var i = 0; i < y.Length; i++)
        {
            var (n, m) = (i / outputs, i % outputs);
            var sum = bias?[m] ?? 0;
            for (var k = 0; k < inputs; k++)
            {
                sum += x[n * inputs + k] * weight[m * inputs + k];
            }

            y[i] = Activations.Value(activation, sum);
        }

        return y;
    }

    public static LinearGradients Backward(
        double[] x, double[] weight, double[]? bias, int inputs, double[] gradY,
        Activation activation = Activation.None)
    {
        var outputs = weight.Length / inputs;
        var before = activation == Activation.None ? gradY : Forward(x, weight, bias, inputs);
        var gradients = new LinearGradients(
            new double[x.Length], new double[weight.Length], bias is null ? null : new double[outputs]);
        for (var i = 0; i < gradY.Length; i++)
        {
            var (n, m) = (i / outputs, i % outputs);
            var g = gradY[i] * Activations.Slope(activation, before[i]);
            for (var k = 0; k < inputs; k++)
            {
                gradients.X[n * inputs + k] += g * weight[m * inputs + k];
                gradients.Weight[m * inputs + k] += g * x[n * inputs + k];
            }

            if (gradients.Bias is not null)
            {
                gradients.Bias[m] += g;
            }
        }

        return gradients;
    }
}

/// <summary>Gradients of a layer norm.</summary>
public sealed record LayerNormGradients(double[] X, double[] Weight, double[] Bias);

/// <summary>y = (x - mean) / sqrt(var + epsilon) * weight + bias over rows of weight.Length numbers.</summary>
public static class LayerNorm
{
    public static double[] Forward(double[] x, double[] weight, double[] bias, double epsilon)
    {
        var (normal, _) = Normalise(x, weight.Length, epsilon);
        return [.. normal.Select((value, i) => value * weight[i % weight.Length] + bias[i % weight.Length])];
    }

    public static LayerNormGradients Backward(double[] x, double[] weight, double epsilon, double[] gradY)
    {
        var width = weight.Length;
        var (normal, inverse) = Normalise(x, width, epsilon);
        var gradients = new LayerNormGradients(new double[x.Length], new double[width], new double[width]);
        for (var row = 0; row < x.Length / width; row++)
        {
            double mean = 0, meanAlong = 0;
            for (var d = 0; d < width; d++)
            {
                var i = row * width + d;
                gradients.Weight[d] += gradY[i] * normal[i];
                gradients.Bias[d] += gradY[i];
                mean += gradY[i] * weight[d] / width;
                meanAlong += gradY[i] * weight[d] * normal[i] / width;
            }

            for (var d = 0; d < width; d++)
            {
                var i = row * width + d;
                gradients.X[i] = inverse[row] * (gradY[i] * weight[d] - mean - normal[i] * meanAlong);
            }
        }

        return gradients;
    }

    private static (double[] Normal, double[] Inverse) Normalise(double[] x, int width, double epsilon)
    {
        var normal = new double[x.Length];
        var inverse = new double[x.Length / width];
        for (var row = 0; row < inverse.Length; row++)
        {
            var values = x.AsSpan(row * width, width).ToArray();
            var mean = values.Average();
            inverse[row] = 1 / Math.Sqrt(values.Average(v => (v - mean) * (v - mean)) + epsilon);
            for (var d = 0; d < width; d++)
            {
                normal[row * width + d] = (values[d] - mean) * inverse[row];
            }
        }

        return (normal, inverse);
    }
}

/// <summary>Weights of the feed-forward, W1 [F,E], B1 [F], W2 [E,F], B2 [E], or their gradients.</summary>
public sealed record FeedForwardParameters(double[] W1, double[] B1, double[] W2, double[] B2);

/// <summary>y = dropout(activation(dropout(x W1^T + b1)) W2^T + b2).</summary>
public static class FeedForward
{
    public static double[] Forward(
        double[] x, FeedForwardParameters p, Activation activation, float dropout, Randomness randomness)
    {
        var hidden = Hidden(x, p, dropout, randomness);
        var active = hidden.Select(h => Activations.Value(activation, h)).ToArray();
        return Philox.Dropout(
            Linear.Forward(active, p.W2, p.B2, p.B1.Length), randomness, Site.FeedForwardOutput, dropout);
    }

    public static (double[] X, FeedForwardParameters Parameters) Backward(
        double[] x, FeedForwardParameters p, Activation activation, float dropout, Randomness randomness,
        double[] gradY)
    {
        var hidden = Hidden(x, p, dropout, randomness);
        var active = hidden.Select(h => Activations.Value(activation, h)).ToArray();
        var gradSecond = Philox.Dropout(gradY, randomness, Site.FeedForwardOutput, dropout);
        var second = Linear.Backward(active, p.W2, p.B2, p.B1.Length, gradSecond);
        var gradHidden = second.X.Select((g, i) => g * Activations.Slope(activation, hidden[i])).ToArray();
        var gradFirst = Philox.Dropout(gradHidden, randomness, Site.FeedForwardHidden, dropout);
        var first = Linear.Backward(x, p.W1, p.B1, p.B2.Length, gradFirst);
        return (first.X, new(first.Weight, first.Bias!, second.Weight, second.Bias!));
    }

    private static double[] Hidden(double[] x, FeedForwardParameters p, float dropout, Randomness randomness) =>
        Philox.Dropout(Linear.Forward(x, p.W1, p.B1, p.B2.Length), randomness, Site.FeedForwardHidden, dropout);
}
