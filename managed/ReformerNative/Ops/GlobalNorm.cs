using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>The norm of all gradients together and the factor that brings it down to a limit.</summary>
public readonly ref struct GlobalNorm
{
    /// <summary>The limit; 0 for none.</summary>
    public float MaxNorm { get; init; }

    /// <summary>Float32 gradients of any shapes.</summary>
    public required ReadOnlySpan<TensorView> Gradients { get; init; }

    /// <summary>
    /// Output, Float32 [2]: the norm, and the factor: limit / norm when the norm is larger, 1 when not, 0 when it is
    /// not finite.
    /// </summary>
    public required TensorView Result { get; init; }

    /// <summary>
    /// Bytes of workspace that it needs. Shapes are enough: views may come from <see cref="TensorView.Meta"/>.
    /// </summary>
    /// <param name="context">The context that would run it.</param>
    /// <returns>Bytes.</returns>
    public unsafe long WorkspaceBytes(ReformerContext context)
    {
        ArgumentNullException.ThrowIfNull(context);
        using TensorLists lists = List(context);
        fixed (rfn_tensor* first = lists.Tensors)
        {
            rfn_global_norm native = ToNative(context, first);
            return OpCall.Size(context, in native, &NativeMethods.rfn_global_norm_workspace);
        }
    }

    /// <summary>Writes <see cref="Result"/>.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Run(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        using TensorLists lists = List(workspace.Context);
        fixed (rfn_tensor* first = lists.Tensors)
        {
            rfn_global_norm native = ToNative(workspace.Context, first);
            OpCall.Run(
                in this, workspace, in native, &NativeMethods.rfn_global_norm_workspace,
                &NativeMethods.rfn_global_norm_forward);
        }
    }

    private TensorLists List(ReformerContext context)
    {
        var lists = new TensorLists(context, Gradients.Length, 1);
        lists.Set(0, Gradients, nameof(Gradients));
        return lists;
    }

    private unsafe rfn_global_norm ToNative(ReformerContext context, rfn_tensor* first) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_global_norm>(),
        max_norm = MaxNorm,
        count = Gradients.Length,
        gradients = first,
        result = Result.ToResult<rfn_norm_result>(context, DType.Float32),
    };
}
