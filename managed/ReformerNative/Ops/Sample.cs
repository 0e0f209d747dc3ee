using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// Draws one id per row from softmax(logits / temperature), among the largest logits and the most probable ids. N rows,
/// V words.
/// </summary>
public readonly struct Sample
{
    /// <summary>0 takes the first largest logit.</summary>
    public required float Temperature { get; init; }

    /// <summary>Smallest sum of probabilities of the ids kept, 0 &lt; p &lt;= 1; 1 keeps all.</summary>
    public required float TopP { get; init; }

    /// <summary>Number of largest logits kept; 0 keeps all.</summary>
    public int TopK { get; init; }

    /// <summary>Seed of the run.</summary>
    public ulong Seed { get; init; }

    /// <summary>Position or step of the draw.</summary>
    public ulong Step { get; init; }

    /// <summary>Float32 [N,V].</summary>
    public required TensorView Logits { get; init; }

    /// <summary>
    /// Output: Int32 [N]. A row with NaN or infinity, or without a finite logit, is refused on the CPU; on a GPU its id
    /// is -1.
    /// </summary>
    public required TensorView Ids { get; init; }

    /// <summary>
    /// Bytes of workspace that it needs. Shapes are enough: views may come from <see cref="TensorView.Meta"/>.
    /// </summary>
    /// <param name="context">The context that would run it.</param>
    /// <returns>Bytes.</returns>
    public unsafe long WorkspaceBytes(ReformerContext context)
    {
        ArgumentNullException.ThrowIfNull(context);
        rfn_sample native = ToNative(context);
        return OpCall.Size(context, in native, &NativeMethods.rfn_sample_workspace);
    }

    /// <summary>Writes <see cref="Ids"/>.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Run(Workspace workspace)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_sample native = ToNative(workspace.Context);
        OpCall.Run(
            in this, workspace, in native, &NativeMethods.rfn_sample_workspace,
            &NativeMethods.rfn_sample_forward);
    }

    private rfn_sample ToNative(ReformerContext context) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_sample>(),
        temperature = Temperature,
        top_p = TopP,
        top_k = TopK,
        seed = Seed,
        step = Step,
        logits = Logits.ToNative(context),
        ids = Ids.ToNative(context),
    };
}
