using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// The one way from an op to the native library. An op arrives by reference together with its native form, and these
/// methods are not inlined, so the tensors that the op names stay reachable while native code works on their memory.
/// </summary>
internal static unsafe class OpCall
{
    /// <summary>Bytes of scratch that a pass needs; shapes are enough.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static long Size<TNative>(
        ReformerContext context, in TNative native, Pass pass,
        delegate*<ContextHandle, in TNative, int, long*, int> size)
        where TNative : unmanaged
    {
        long bytes = 0;
        NativeError.ThrowIfFailed(size(context.Handle, in native, (int)pass, &bytes));
        return bytes;
    }

    /// <summary>Bytes of scratch that an op of one pass needs; shapes are enough.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static long Size<TNative>(
        ReformerContext context, in TNative native, delegate*<ContextHandle, in TNative, long*, int> size)
        where TNative : unmanaged
    {
        long bytes = 0;
        NativeError.ThrowIfFailed(size(context.Handle, in native, &bytes));
        return bytes;
    }

    /// <summary>
    /// Runs a pass, and grows the workspace before when it needs more. In a steady state it does not, so the need is
    /// asked for only after a refusal, which comes before any work: one call of the library instead of two.
    /// </summary>
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
        int status = run(workspace.Context.Stream, in native, workspace.Pointer, workspace.Bytes);
        if (status == NativeConstants.RFN_INVALID_ARGUMENT
            && Size(workspace.Context, in native, pass, size) is long needed && needed > workspace.Bytes)
        {
            workspace.Reserve(needed);
            status = run(workspace.Context.Stream, in native, workspace.Pointer, workspace.Bytes);
        }

        NativeError.ThrowIfFailed(status);
        KeepAlive(in op);
    }

    /// <summary>The same for an op of one pass.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static void Run<TOp, TNative>(
        in TOp op,
        Workspace workspace,
        in TNative native,
        delegate*<ContextHandle, in TNative, long*, int> size,
        delegate*<StreamHandle, in TNative, nint, long, int> run)
        where TOp : allows ref struct
        where TNative : unmanaged
    {
        int status = run(workspace.Context.Stream, in native, workspace.Pointer, workspace.Bytes);
        if (status == NativeConstants.RFN_INVALID_ARGUMENT
            && Size(workspace.Context, in native, size) is long needed && needed > workspace.Bytes)
        {
            workspace.Reserve(needed);
            status = run(workspace.Context.Stream, in native, workspace.Pointer, workspace.Bytes);
        }

        NativeError.ThrowIfFailed(status);
        KeepAlive(in op);
    }

    /// <summary>Runs an op that needs no scratch.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static void Run<TOp, TNative>(
        in TOp op, ReformerContext context, in TNative native, delegate*<StreamHandle, in TNative, int> run)
        where TOp : allows ref struct
        where TNative : unmanaged
    {
        NativeError.ThrowIfFailed(run(context.Stream, in native));
        KeepAlive(in op);
    }

    /// <summary>What an op cannot do without, though a default value of its struct lacks it.</summary>
    internal static T Required<T>(
        T? value, string op, [CallerArgumentExpression(nameof(value))] string property = "")
        where T : class =>
        value ?? throw new InvalidOperationException($"{op} needs {property}.");

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void KeepAlive<T>(in T value)
        where T : allows ref struct
    {
    }
}
