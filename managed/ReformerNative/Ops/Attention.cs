using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// Attention over all heads, whole (<see cref="Forward"/>, <see cref="Backward"/>) or, for LSH, stage by stage. B
/// sequences of T tokens, H heads of size D, R rounds. No buffer of [R, T, D] or [T, window] exists in the whole op.
/// </summary>
public readonly struct Attention
{
    /// <summary>What attends to what.</summary>
    public required AttentionOptions Options { get; init; }

    /// <summary>Index of the layer in its stack: part of the key of random numbers.</summary>
    public int Layer { get; init; }

    /// <summary>Seed of the run.</summary>
    public ulong Seed { get; init; }

    /// <summary>Training step; dropout of a step is the same in both passes.</summary>
    public ulong Step { get; init; }

    /// <summary>Float32 [B,T,H,D]; with shared queries and keys the one projection.</summary>
    public required TensorView Q { get; init; }

    /// <summary>Float32 [B,T,H,D]; absent when shared.</summary>
    public TensorView K { get; init; }

    /// <summary>Float32 [B,T,H,D].</summary>
    public required TensorView V { get; init; }

    /// <summary>UInt8 [B,T]: 1 for a real token, 0 for padding; optional.</summary>
    public TensorView Mask { get; init; }

    /// <summary>LSH: Float32, see <see cref="AttentionOptions.RotationsShape"/>.</summary>
    public TensorView Rotations { get; init; }

    /// <summary>
    /// LSH: Int32 [B,H,R,T]. Optional output of the forward pass; optional input of the backward pass, which else
    /// hashes again.
    /// </summary>
    public TensorView Buckets { get; init; }

    /// <summary>LSH stages: Int32 [B,H,R,padded length], the position at each slot.</summary>
    public TensorView Sorted { get; init; }

    /// <summary>Float32 [B,T,H,D]: output of the forward pass, input of the backward pass.</summary>
    public TensorView Out { get; init; }

    /// <summary>
    /// Float32 [B,H,T], log-sum-exp of the scores: optional output of the forward pass, input of the backward pass.
    /// </summary>
    public TensorView LogSumExp { get; init; }

    /// <summary>LSH stages: Float32 [R*B,T,H,D], each round's output.</summary>
    public TensorView RoundOut { get; init; }

    /// <summary>LSH stages: Float32 [R,B,H,T], each round's log-sum-exp.</summary>
    public TensorView RoundLogSumExp { get; init; }

    /// <summary>Backward: Float32 [B,T,H,D].</summary>
    public TensorView GradOut { get; init; }

    /// <summary>Output of the backward pass: Float32 [B,T,H,D].</summary>
    public TensorView GradQ { get; init; }

    /// <summary>Output of the backward pass: Float32 [B,T,H,D]; absent when shared.</summary>
    public TensorView GradK { get; init; }

    /// <summary>Output of the backward pass: Float32 [B,T,H,D].</summary>
    public TensorView GradV { get; init; }

    /// <summary>LSH stages, backward: Float32 [R*B,T,H,D].</summary>
    public TensorView GradRoundOut { get; init; }

    /// <summary>LSH stages, backward: Float32 [R,B,H,T].</summary>
    public TensorView GradRoundLogSumExp { get; init; }

    /// <summary>Heads processed together, which trades workspace for speed; 0 for automatic.</summary>
    public long HeadGroup { get; init; }

    /// <summary>Bytes of workspace that a pass, or a stage of it, needs. Shapes are enough: views may come from <see
    /// cref="TensorView.Meta"/>.</summary>
    /// <param name="context">The context that would run it.</param>
    /// <param name="pass">The pass.</param>
    /// <returns>Bytes.</returns>
    public unsafe long WorkspaceBytes(ReformerContext context, Pass pass)
    {
        ArgumentNullException.ThrowIfNull(context);
        rfn_attention native = ToNative(context);
        return OpCall.Size(context, in native, pass, &NativeMethods.rfn_attention_workspace);
    }

    /// <summary>
    /// Writes <see cref="Out"/> and, where present, <see cref="LogSumExp"/> and <see cref="Buckets"/>.
    /// </summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Forward(Workspace workspace) =>
        Run(workspace, Pass.Forward, &NativeMethods.rfn_attention_forward);

    /// <summary>Writes <see cref="GradQ"/>, <see cref="GradK"/> and <see cref="GradV"/>.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Backward(Workspace workspace) =>
        Run(workspace, Pass.Backward, &NativeMethods.rfn_attention_backward);

    /// <summary>Stage 1: <see cref="Buckets"/> from <see cref="Q"/> and <see cref="Rotations"/>.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Hash(Workspace workspace) => Run(workspace, Pass.Forward, &NativeMethods.rfn_lsh_hash);

    /// <summary>Stage 2: <see cref="Sorted"/> from <see cref="Buckets"/> and <see cref="Mask"/>.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Sort(Workspace workspace) => Run(workspace, Pass.Forward, &NativeMethods.rfn_lsh_sort);

    /// <summary>Stage 3: <see cref="RoundOut"/> and <see cref="RoundLogSumExp"/>, each round by itself.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Attend(Workspace workspace) => Run(workspace, Pass.Forward, &NativeMethods.rfn_lsh_attend);

    /// <summary>Stage 4: <see cref="Out"/> and <see cref="LogSumExp"/> from the rounds.</summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void Combine(Workspace workspace) => Run(workspace, Pass.Forward, &NativeMethods.rfn_lsh_combine);

    /// <summary>
    /// Backward of stage 4: <see cref="GradRoundOut"/> and <see cref="GradRoundLogSumExp"/> from <see cref="GradOut"/>.
    /// </summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void CombineBackward(Workspace workspace) =>
        Run(workspace, Pass.Backward, &NativeMethods.rfn_lsh_combine_backward);

    /// <summary>
    /// Backward of stage 3: <see cref="GradQ"/> and <see cref="GradV"/> from the gradients of the rounds.
    /// </summary>
    /// <param name="workspace">Scratch memory of the context to run in; it grows when needed.</param>
    public unsafe void AttendBackward(Workspace workspace) =>
        Run(workspace, Pass.Backward, &NativeMethods.rfn_lsh_attend_backward);

    private unsafe void Run(
        Workspace workspace, Pass pass, delegate*<StreamHandle, in rfn_attention, nint, long, int> function)
    {
        ArgumentNullException.ThrowIfNull(workspace);
        rfn_attention native = ToNative(workspace.Context);
        OpCall.Run(in this, workspace, in native, pass, &NativeMethods.rfn_attention_workspace, function);
    }

    private rfn_attention ToNative(ReformerContext context) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_attention>(),
        layer = Layer,
        seed = Seed,
        step = Step,
        options = Options.ToNative(),
        q = Q.ToNative(context),
        k = K.ToNative(context),
        v = V.ToNative(context),
        mask = Mask.ToNative(context),
        rotations = Rotations.ToNative(context),
        buckets = Buckets.ToNative(context),
        sorted = Sorted.ToNative(context),
        @out = Out.ToNative(context),
        log_sum_exp = LogSumExp.ToNative(context),
        round_out = RoundOut.ToNative(context),
        round_log_sum_exp = RoundLogSumExp.ToNative(context),
        grad_out = GradOut.ToNative(context),
        grad_q = GradQ.ToNative(context),
        grad_k = GradK.ToNative(context),
        grad_v = GradV.ToNative(context),
        grad_round_out = GradRoundOut.ToNative(context),
        grad_round_log_sum_exp = GradRoundLogSumExp.ToNative(context),
        head_group = HeadGroup,
    };
}
