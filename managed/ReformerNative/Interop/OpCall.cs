using System.Runtime.CompilerServices;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Interop;

/// <summary>The one way from an op to the native library. An op arrives by reference together with its native form, and these methods are
/// not inlined, so the tensors that the op names stay reachable while native code works on their memory.</summary>
internal static unsafe class OpCall
{
    /// <summary>Bytes of scratch that a pass needs; shapes are enough.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static long Size<TNative>(
        ReformerContext context, in TNative native, Pass pass, delegate*<ContextHandle, in TNative, int, long*, int> size)
        where TNative : unmanaged
    {
        long bytes = 0;
        NativeError.ThrowIfFailed(size(context.Handle, in native, (int)pass, &bytes));
        return bytes;
    }

    /// <summary>Grows the workspace to what the pass needs and runs it.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static void Run<TOp, TNative>(
        in TOp op,
        Workspace workspace,
        in TNative native,
        Pass pass,
        delegate*<ContextHandle, in TNative, int, long*, int> size,
        delegate*<StreamHandle, in TNative, nint, long, int> run)
        where TOp : allows ref struct
        where TNative : unmanaged
    {
        workspace.Reserve(Size(workspace.Context, in native, pass, size));
        NativeError.ThrowIfFailed(run(workspace.Context.Stream, in native, workspace.Pointer, workspace.Bytes));
        KeepAlive(in op);
    }

    /// <summary>Runs an op that needs no scratch.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static void Run<TOp, TNative>(in TOp op, ReformerContext context, in TNative native, delegate*<StreamHandle, in TNative, int> run)
        where TNative : unmanaged
    {
        NativeError.ThrowIfFailed(run(context.Stream, in native));
        KeepAlive(in op);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void KeepAlive<T>(in T value)
        where T : allows ref struct
    {
    }
}
