using ReformerNative.Interop;

namespace ReformerNative.Tensors;

/// <summary>What a native call came to.</summary>
public enum NativeStatus
{
    /// <summary>It worked.</summary>
    Ok = NativeConstants.RFN_OK,

    /// <summary>A value, shape or pointer is wrong. Thrown as <see cref="ArgumentException"/>.</summary>
    InvalidArgument = NativeConstants.RFN_INVALID_ARGUMENT,

    /// <summary>
    /// Right in itself, but not available in this backend or build. Thrown as <see cref="NotSupportedException"/>.
    /// </summary>
    Unsupported = NativeConstants.RFN_UNSUPPORTED,

    /// <summary>Memory ran out. Thrown as <see cref="InsufficientMemoryException"/>.</summary>
    OutOfMemory = NativeConstants.RFN_OUT_OF_MEMORY,

    /// <summary>The call failed on the device.</summary>
    DeviceError = NativeConstants.RFN_DEVICE_ERROR,

    /// <summary>An earlier device error was fatal; the context takes no further work.</summary>
    DeviceLost = NativeConstants.RFN_DEVICE_LOST,

    /// <summary>The context is in another call. Thrown as <see cref="InvalidOperationException"/>.</summary>
    Busy = NativeConstants.RFN_BUSY,

    /// <summary>A bug in the native library.</summary>
    Internal = NativeConstants.RFN_INTERNAL,
}

/// <summary>
/// A native call failed for a reason that lies in the device or in the library, not in the arguments.
/// </summary>
public sealed class ReformerNativeException : Exception
{
    /// <summary>An exception without details.</summary>
    public ReformerNativeException()
        : this(NativeStatus.Internal, "The native library failed.")
    {
    }

    /// <summary>An exception with a message.</summary>
    /// <param name="message">What happened.</param>
    public ReformerNativeException(string message)
        : this(NativeStatus.Internal, message)
    {
    }

    /// <summary>An exception with a message and a cause.</summary>
    /// <param name="message">What happened.</param>
    /// <param name="innerException">The cause.</param>
    public ReformerNativeException(string message, Exception innerException)
        : base(message, innerException) => Status = NativeStatus.Internal;

    /// <summary>An exception for a status.</summary>
    /// <param name="status">What the call came to.</param>
    /// <param name="message">The native library's message.</param>
    public ReformerNativeException(NativeStatus status, string message)
        : base(message) => Status = status;

    /// <summary>What the call came to.</summary>
    public NativeStatus Status { get; }
}
