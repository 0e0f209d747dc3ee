namespace ReformerNative.Model;

/// <summary>
/// What a layer keeps of its forward pass for its backward pass: memory for speed. With exact residuals the gradients
/// have the same bits whatever is kept. With float residuals kept streams are the forward pass's own values, where
/// inverting gives back rounded ones, so that gradients differ from those of an inverted layer by rounding.
/// </summary>
public enum KeepActivations
{
    /// <summary>Nothing: the backward pass computes the layer again and subtracts it from the streams.</summary>
    Nothing,

    /// <summary>
    /// The two streams before the layer, 8·B·T·E bytes: the second product of each half is not repeated.
    /// </summary>
    Streams,

    /// <summary>
    /// Besides the streams all that attention and the feed-forward layer computed: no product, hash or attention is
    /// repeated.
    /// </summary>
    All,
}
