using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Tests.Tensors;

public sealed class NativeErrorTests
{
    [TestCase(NativeConstants.RFN_INVALID_ARGUMENT, typeof(ArgumentException))]
    [TestCase(NativeConstants.RFN_UNSUPPORTED, typeof(NotSupportedException))]
    [TestCase(NativeConstants.RFN_BUSY, typeof(InvalidOperationException))]
    [TestCase(NativeConstants.RFN_OUT_OF_MEMORY, typeof(InsufficientMemoryException))]
    [TestCase(NativeConstants.RFN_DEVICE_ERROR, typeof(ReformerNativeException))]
    [TestCase(NativeConstants.RFN_DEVICE_LOST, typeof(ReformerNativeException))]
    [TestCase(NativeConstants.RFN_INTERNAL, typeof(ReformerNativeException))]
    [TestCase(99, typeof(ReformerNativeException))]
    public void ToException_Status_HasItsTypeAndTheMessage(int status, Type expected)
    {
        Exception error = NativeError.ToException(status, "what happened");
        Assert.That(error, Is.TypeOf(expected));
        Assert.That(error.Message, Is.EqualTo("what happened"));
        if (error is ReformerNativeException native)
        {
            Assert.That((int)native.Status, Is.EqualTo(status));
        }
    }

    [Test]
    public void OutOfMemory_IsAnOutOfMemoryException() =>
        Assert.That(
            NativeError.ToException(NativeConstants.RFN_OUT_OF_MEMORY, ""), Is.InstanceOf<OutOfMemoryException>());

    [Test]
    public void ThrowIfFailed_Ok_DoesNothing() =>
        Assert.DoesNotThrow(() => NativeError.ThrowIfFailed(NativeConstants.RFN_OK));

    [Test]
    public void Context_OfAnUnknownDevice_ThrowsWithTheNativeMessage()
    {
        var error = Assert.Throws<ArgumentException>(() => new ReformerContext(new Device((DeviceType)7, 0)));
        Assert.That(error!.Message, Does.Contain("7"));
    }
}
