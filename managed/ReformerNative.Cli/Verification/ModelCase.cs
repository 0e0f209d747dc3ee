using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Tensors;

namespace ReformerNative.Cli.Verification;

/// <summary>A whole model: config.json, model.safetensors, io.safetensors.</summary>
internal static class ModelCase
{
    /// <summary>What the file gives and the model takes as it is.</summary>
    public static readonly string[] Inputs = ["input_ids", "attention_mask", "labels"];

    public static Dictionary<string, ComputedTensor> Compute(
        string directory, SafetensorsReader io, ReformerContext context)
    {
        using ReformerModel model = ReformerModel.Load(directory, context);
        TokenBatch batch = ReadBatch(io);
        bool gradients = io.Entries.Any(entry => entry.Name.StartsWith("grad.", StringComparison.Ordinal));
        int layers = model.Config.AttnLayers.Count;
        float[]?[] rotations =
        [
            .. Enumerable.Range(0, layers).Select(layer => $"rotations.layer{layer}")
                .Select(name => io.TryGet(name, out _) ? io.ReadFloats(name) : null),
        ];
        ModelTrace trace = model.Trace(batch, new RunOptions { Rotations = rotations }, gradients);

        // After the pass: an open number of buckets has been chosen by now.
        ReformerConfig config = model.Config;
        var computed = new Dictionary<string, ComputedTensor>(StringComparer.Ordinal);
        byte[]? mask = batch.HasMask ? batch.Mask.ToArray() : null;
        long b = batch.BatchSize;
        long t = batch.Length;
        void Rows(string name, float[] values, long width) =>
            computed.Add(name, ComputedTensor.Of(values, [b, t, width], tokenAxis: 1, mask));

        Rows("embeddings", trace.Embeddings, config.HiddenSize);
        for (int layer = 0; layer < layers; layer++)
        {
            LayerTrace found = trace.Layers[layer];
            Rows(
                $"layers.{layer}.self_attention", found.AttentionResult,
                config.NumAttentionHeads * config.AttentionHeadSize);
            Rows($"layers.{layer}.attn_output", found.Stream1, config.HiddenSize);
            Rows($"layers.{layer}.hidden_states", found.Stream2, config.HiddenSize);
            if (found is { Buckets: { } buckets, Rotations: { } used })
            {
                AddHashes(computed, io, layer, config, buckets, used, b, t);
            }
        }

        Rows("last_hidden_state", trace.LastHiddenState, config.FinalWidth);
        if (trace.LogitsShape is [_, _, var outputs])
        {
            Rows("logits", trace.Logits, outputs);
        }
        else
        {
            computed.Add("logits", ComputedTensor.Of(trace.Logits, [.. trace.LogitsShape]));
        }

        if (trace.Loss is { } loss)
        {
            computed.Add("loss", ComputedTensor.Of(new[] { (float)loss.Loss }, []));
        }

        if (gradients)
        {
            foreach (Parameter parameter in model.Parameters)
            {
                string name = "grad." + parameter.Name;

                // The file may have axes of length 1 that the parameter does not.
                IReadOnlyList<long> shape =
                    io.TryGet(name, out SafetensorsEntry? entry)
                    && entry!.ElementCount == parameter.Gradient.ElementCount
                        ? entry.Shape
                        : [parameter.Gradient.ElementCount];
                computed.Add(name, ComputedTensor.Of(parameter.Gradient.ToArray<float>(), shape));
            }
        }

        return computed;
    }

    /// <summary>
    /// Buckets without and with the offset of each round, and the rotations that were used, whole and by factor.
    /// </summary>
    private static void AddHashes(
        Dictionary<string, ComputedTensor> computed, SafetensorsReader io, int layer, ReformerConfig config,
        int[] buckets, float[] rotations, long b, long t)
    {
        long heads = config.NumAttentionHeads;
        long rounds = config.NumHashes;
        long[] shape = [b, heads, rounds, t];
        IReadOnlyList<int> factors = config.NumBuckets!;

        // Padding, given or imagined, has a bucket of its own behind the others.
        bool padded = (io.TryGet("attention_mask", out _) && io.ReadIntegers("attention_mask").Contains(0))
            || (io.TryGet($"buckets.layer{layer}.raw", out SafetensorsEntry? raw) && raw!.Shape[^1] > t);
        int offset = factors.Aggregate(1, (product, factor) => product * factor) + (padded ? 1 : 0);
        int[] withOffset = [.. buckets.Select((bucket, i) => bucket + (int)(i / t % rounds * offset))];
        computed.Add($"buckets.layer{layer}.raw", ComputedTensor.Of(buckets, shape, tokenAxis: 3));
        computed.Add($"buckets.layer{layer}", ComputedTensor.Of(withOffset, shape, tokenAxis: 3));

        int columns = factors.Sum() / 2;
        long d = config.AttentionHeadSize;
        computed.Add($"rotations.layer{layer}", ComputedTensor.Of(rotations, [heads, d, rounds, columns]));
        int first = 0;
        for (int factor = 0; factors.Count > 1 && factor < factors.Count; factor++)
        {
            int width = factors[factor] / 2;
            int start = first;
            float[] part = [.. rotations.Where((_, i) => i % columns >= start && i % columns < start + width)];
            computed.Add($"rotations.layer{layer}.{factor}", ComputedTensor.Of(part, [heads, d, rounds, width]));
            first += width;
        }
    }

    private static TokenBatch ReadBatch(SafetensorsReader io)
    {
        IReadOnlyList<long> shape = io.Get("input_ids").Shape;
        if (shape.Count != 2 || shape[0] < 1 || shape[1] < 1 || shape[0] > int.MaxValue / shape[1])
        {
            throw new ReformerFormatException(
                io.Path, $"'input_ids': expected the shape [B, L], found [{string.Join(", ", shape)}]");
        }

        var batch = new TokenBatch((int)shape[0], (int)shape[1]);
        io.ReadIntegers("input_ids").CopyTo(batch.Ids);
        batch.Labels.Fill(TokenBatch.IgnoredLabel);
        if (io.TryGet("labels", out _))
        {
            int[] labels = io.ReadIntegers("labels");
            if (labels.Length == batch.TokenCount)
            {
                labels.CopyTo(batch.Labels);
            }
            else if (labels.Length == batch.BatchSize)
            {
                for (int example = 0; example < batch.BatchSize; example++)
                {
                    batch.Labels[example * batch.Length] = labels[example];
                }
            }
            else
            {
                throw new ReformerFormatException(
                    io.Path,
                    $"'labels': expected {batch.TokenCount} or {batch.BatchSize} elements, found {labels.Length}");
            }
        }

        if (io.TryGet("attention_mask", out SafetensorsEntry? mask))
        {
            if (mask!.ElementCount != batch.TokenCount)
            {
                throw new ReformerFormatException(
                    io.Path, $"'attention_mask': expected {batch.TokenCount} elements, found {mask.ElementCount}");
            }

            int[] values = io.ReadIntegers("attention_mask");
            for (int i = 0; i < values.Length; i++)
            {
                batch.Mask[i] = values[i] != 0 ? (byte)1 : (byte)0;
            }

            batch.HasMask = true;
        }

        return batch;
    }
}
