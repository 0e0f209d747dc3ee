using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using ReformerNative.Interop;

namespace ReformerNative.Tensors;

/// <summary>Turns a status into an exception that carries the native library's message.</summary>
internal static unsafe class NativeError
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static void ThrowIfFailed(int status)
    {
        if (status != NativeConstants.RFN_OK)
        {
            throw ToException(status, Text(NativeMethods.rfn_last_error()));
        }
    }

    internal static Exception ToException(int status, string message) => status switch
    {
        NativeConstants.RFN_INVALID_ARGUMENT => new ArgumentException(message),
        NativeConstants.RFN_UNSUPPORTED => new NotSupportedException(message),
        NativeConstants.RFN_OUT_OF_MEMORY => new InsufficientMemoryException(message),
        NativeConstants.RFN_BUSY => new InvalidOperationException(message),
        _ => new ReformerNativeException((NativeStatus)status, message),
    };

    /// <summary>A zero-terminated UTF-8 text as a string.</summary>
    internal static string Text(byte* text) => Marshal.PtrToStringUTF8((nint)text) ?? "";
}
