using System.Runtime.CompilerServices;
using ReformerNative.Interop;
using ReformerNative.Tensors;

namespace ReformerNative.Ops;

/// <summary>
/// Parameters of a reversible block, or gradients of them. Width E, H heads of size D, feed-forward width F; linear
/// weights are [outputs, inputs]. Made once for a layer and used in every step.
/// </summary>
public sealed class BlockParameters
{
    /// <summary>Float32 [E].</summary>
    public required TensorView AttentionNormWeight { get; init; }

    /// <summary>Float32 [E].</summary>
    public required TensorView AttentionNormBias { get; init; }

    /// <summary>Float32 [H*D,E]; with shared queries and keys the one projection.</summary>
    public required TensorView Query { get; init; }

    /// <summary>Float32 [H*D,E]; absent when shared.</summary>
    public TensorView Key { get; init; }

    /// <summary>Float32 [H*D,E].</summary>
    public required TensorView Value { get; init; }

    /// <summary>Float32 [E,H*D].</summary>
    public required TensorView Output { get; init; }

    /// <summary>Float32 [E]; optional.</summary>
    public TensorView OutputBias { get; init; }

    /// <summary>Float32 [E].</summary>
    public required TensorView FeedForwardNormWeight { get; init; }

    /// <summary>Float32 [E].</summary>
    public required TensorView FeedForwardNormBias { get; init; }

    /// <summary>Float32 [F,E].</summary>
    public required TensorView W1 { get; init; }

    /// <summary>Float32 [F].</summary>
    public required TensorView B1 { get; init; }

    /// <summary>Float32 [E,F].</summary>
    public required TensorView W2 { get; init; }

    /// <summary>Float32 [E].</summary>
    public required TensorView B2 { get; init; }

    internal rfn_block_parameters ToNative(ReformerContext context) => new()
    {
        struct_size = (uint)Unsafe.SizeOf<rfn_block_parameters>(),
        attention_norm_weight = AttentionNormWeight.ToNative(context),
        attention_norm_bias = AttentionNormBias.ToNative(context),
        query = Query.ToNative(context),
        key = Key.ToNative(context),
        value = Value.ToNative(context),
        output = Output.ToNative(context),
        output_bias = OutputBias.ToNative(context),
        feed_forward_norm_weight = FeedForwardNormWeight.ToNative(context),
        feed_forward_norm_bias = FeedForwardNormBias.ToNative(context),
        w1 = W1.ToNative(context),
        b1 = B1.ToNative(context),
        w2 = W2.ToNative(context),
        b2 = B2.ToNative(context),
    };
}
