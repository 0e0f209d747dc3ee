namespace ReformerNative.Model;

/// <summary>
/// Everything a pass computed, in managed memory: for comparing a model with another implementation, not for training.
/// </summary>
[System.Diagnostics.CodeAnalysis.SuppressMessage(
    "Performance", "CA1819", Justification = "Raw results, made for the caller.")]
public sealed class ModelTrace
{
    internal ModelTrace(int layers) => Layers = new LayerTrace[layers];

    /// <summary>Words plus positions [B, T, E]: what both streams start as.</summary>
    public float[] Embeddings { get; internal set; } = [];

    /// <summary>Results of each layer.</summary>
    public IReadOnlyList<LayerTrace> Layers { get; }

    /// <summary>Output of the final norm [B, T, W], W being the configuration's final width.</summary>
    public float[] LastHiddenState { get; internal set; } = [];

    /// <summary>Outputs of the head: [B, T, V], of a classifier [B, labels].</summary>
    public float[] Logits { get; internal set; } = [];

    /// <summary>
    /// Shape of <see cref="Logits"/>: three axes, the second of tokens, if each token has outputs; else two.
    /// </summary>
    public IReadOnlyList<long> LogitsShape { get; internal set; } = [];

    /// <summary>Loss against the labels of the batch; null when none takes part.</summary>
    public LossResult? Loss { get; internal set; }

    /// <summary>After a backward pass: how well it recovered the embeddings; null without one.</summary>
    public Reconstruction? Reconstruction { get; internal set; }

    internal void SetLayer(int index, LayerTrace layer) => ((LayerTrace[])Layers)[index] = layer;
}

/// <summary>What a layer computed.</summary>
/// <param name="AttentionResult">Attention result [B, T, H·D], heads merged, before the output projection.</param>
/// <param name="Stream1">Stream 1 after the layer [B, T, E].</param>
/// <param name="Stream2">Stream 2 after the layer [B, T, E].</param>
/// <param name="Buckets">Hash buckets [B, H, R, T] without round offset; null when the layer did not hash.</param>
/// <param name="Rotations">The rotations [sets, D, R, columns] used; null when the layer did not hash.</param>
[System.Diagnostics.CodeAnalysis.SuppressMessage(
    "Performance", "CA1819", Justification = "Raw results, made for the caller.")]
public sealed record LayerTrace(
    float[] AttentionResult, float[] Stream1, float[] Stream2, int[]? Buckets, float[]? Rotations);
