using ReformerNative.Tensors;

namespace ReformerNative.Tests;

/// <summary>
/// Around all tests of this namespace and those below: a native object that a test forgot to dispose fails the run.
/// </summary>
[SetUpFixture]
public sealed class LiveObjectsCheck
{
    [OneTimeTearDown]
    public void Everything_AfterAllTests_IsDisposed() =>
        Assert.That(NativeRuntime.LiveObjects, Is.Zero, "native objects that no test disposed");
}
