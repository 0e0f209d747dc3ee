using ReformerNative.Model;
using ReformerNative.Tensors;

namespace ReformerNative.Tests.Model;

public sealed class ReconstructionTests
{
    /// <summary>Sizes around the stretches that are compared at a time.</summary>
    [TestCase(1)]
    [TestCase(65536)]
    [TestCase(65537)]
    public void Comparison_OfAnySize_SeesTheLastValue(int size)
    {
        float[] values = new float[size];
        using var context = new ReformerContext(threads: 1);
        using Tensor expected = context.FromValues<float>(values, new TensorShape(size));
        values[^1] = -0.5f;
        using Tensor found = context.FromValues<float>(values, new TensorShape(size));
        Assert.That(Reconstruction.Of(expected.View, expected.View), Is.EqualTo(new Reconstruction(true, 0)));
        Assert.That(Reconstruction.Of(expected.View, found.View), Is.EqualTo(new Reconstruction(false, 0.5)));
    }
}
