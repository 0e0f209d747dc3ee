using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Tests.Model;

/// <summary>
/// Whole models against vectors of another implementation, held to its float64 run at the limits of the vectors'
/// README.
/// </summary>
public sealed class VectorTests
{
    private const double Activations = 1e-5;
    private const double Gradients = 2e-5;
    private const double EmbeddingsAndLoss = 1e-6;

    public static IEnumerable<string> Cases() =>
        Directory.EnumerateDirectories(Repository.PathOf("tests", "vectors", "hf"))
            .Select(path => Path.GetFileName(path)!).Order(StringComparer.Ordinal);

    [Test]
    public void Vectors_Directory_HasAllNineCases() => Assert.That(Cases().Count(), Is.EqualTo(9));

    [TestCaseSource(nameof(Cases))]
    public void Model_OnVectors_MeetsFloat64Limits(string name)
    {
        string directory = Repository.PathOf("tests", "vectors", "hf", name);
        using var context = new ReformerContext();
        using ReformerModel model = ReformerModel.Load(directory, context);
        using SafetensorsReader io = SafetensorsReader.Open(Path.Combine(directory, "io.safetensors"));
        Assert.That(model.Config.Residual, Is.EqualTo(ResidualMode.Float), "a file without the key means float");
        bool gradients = io.Entries.Any(entry => entry.Name.StartsWith("grad.", StringComparison.Ordinal));
        TokenBatch batch = Batch(io);
        ModelTrace trace = model.Trace(batch, new RunOptions { Rotations = Rotations(io, model.Config) }, gradients);

        int compared = 0;
        void Close(string tensor, ReadOnlySpan<float> found, double limit, long width = 0)
        {
            double relative = Relative(io, "f64." + tensor, found, width > 0 ? batch : null, width);
            Assert.That(relative, Is.LessThanOrEqualTo(limit), tensor);
            compared++;
        }

        ReformerConfig config = model.Config;
        long e = config.HiddenSize;
        Close("embeddings", trace.Embeddings, EmbeddingsAndLoss, e);
        for (int layer = 0; layer < trace.Layers.Count; layer++)
        {
            LayerTrace found = trace.Layers[layer];
            Close(
                $"layers.{layer}.self_attention", found.AttentionResult, Activations,
                config.NumAttentionHeads * config.AttentionHeadSize);
            Close($"layers.{layer}.attn_output", found.Stream1, Activations, e);
            Close($"layers.{layer}.hidden_states", found.Stream2, Activations, e);
            Assert.That(
                found.Buckets is not null, Is.EqualTo(io.TryGet($"buckets.layer{layer}.raw", out _)),
                $"layer {layer} hashes");
            if (found.Buckets is not null)
            {
                Assert.That(
                    found.Buckets, Is.EqualTo(RealBuckets(io, layer, batch.Length)), $"buckets.layer{layer}.raw");
                compared++;
            }
        }

        Close("last_hidden_state", trace.LastHiddenState, Activations, config.FinalWidth);
        bool classifier = config.Task == ReformerTask.SequenceClassification;
        Close("logits", trace.Logits, Activations, classifier ? 0 : config.VocabSize);
        Close("loss", [(float)trace.Loss!.Value.Loss], EmbeddingsAndLoss);
        if (gradients)
        {
            foreach (Parameter parameter in model.Parameters)
            {
                Close("grad." + parameter.Name, parameter.Gradient.ToArray<float>(), Gradients);
            }
        }

        int expected = io.Entries.Count(entry =>
            entry.Name.StartsWith("f64.", StringComparison.Ordinal)
            || entry.Name.EndsWith(".raw", StringComparison.Ordinal)
        );
        Assert.That(compared, Is.EqualTo(expected), "every tensor of the file is compared");
    }

    [TestCaseSource(nameof(Cases))]
    public void Checkpoint_LoadedAndSaved_HasTheSameBytes(string name)
    {
        string directory = Repository.PathOf("tests", "vectors", "hf", name);
        using var saved = new TemporaryDirectory();
        using var context = new ReformerContext();
        using (ReformerModel model = ReformerModel.Load(directory, context))
        {
            model.Save(saved.Path);
        }

        foreach (string file in (string[])["config.json", "model.safetensors"])
        {
            byte[] before = File.ReadAllBytes(Path.Combine(directory, file));
            byte[] after = File.ReadAllBytes(Path.Combine(saved.Path, file));
            Assert.That(after.AsSpan().SequenceEqual(before), Is.True, file);
        }
    }

    private static TokenBatch Batch(SafetensorsReader io)
    {
        IReadOnlyList<long> shape = io.Get("input_ids").Shape;
        var batch = new TokenBatch((int)shape[0], (int)shape[1]);
        io.ReadIntegers("input_ids").CopyTo(batch.Ids);
        int[] labels = io.ReadIntegers("labels");
        batch.Labels.Fill(TokenBatch.IgnoredLabel);
        if (labels.Length == batch.TokenCount)
        {
            labels.CopyTo(batch.Labels);
        }
        else
        {
            for (int b = 0; b < batch.BatchSize; b++)
            {
                batch.Labels[b * batch.Length] = labels[b];
            }
        }

        if (io.TryGet("attention_mask", out _))
        {
            int[] mask = io.ReadIntegers("attention_mask");
            for (int i = 0; i < mask.Length; i++)
            {
                batch.Mask[i] = (byte)mask[i];
            }

            batch.HasMask = true;
        }

        return batch;
    }

    private static float[]?[] Rotations(SafetensorsReader io, ReformerConfig config) =>
        [
            .. Enumerable
                .Range(0, config.AttnLayers.Count)
                .Select(layer =>
                    io.TryGet($"rotations.layer{layer}", out _) ? io.ReadFloats($"rotations.layer{layer}") : null
                ),
        ];

    /// <summary>The file's buckets cover its own padding; ours only the real length.</summary>
    private static int[] RealBuckets(SafetensorsReader io, int layer, int length)
    {
        string name = $"buckets.layer{layer}.raw";
        int padded = (int)io.Get(name).Shape[^1];
        return [.. io.ReadIntegers(name).Where((_, i) => i % padded < length)];
    }

    /// <summary>
    /// Largest difference relative to the largest magnitude, over real positions when a row width is given.
    /// </summary>
    private static double Relative(
        SafetensorsReader io, string name, ReadOnlySpan<float> found, TokenBatch? batch, long width)
    {
        float[] expected = io.ReadFloats(name);
        if (batch is null)
        {
            Assert.That(found.Length, Is.EqualTo(expected.Length), name);
        }

        double difference = 0;
        double magnitude = 0;
        long padded = batch is null ? 0 : expected.Length / (batch.BatchSize * width);
        for (int i = 0; i < found.Length; i++)
        {
            int place = i;
            if (batch is not null)
            {
                (long row, long column) = Math.DivRem(i, width);
                (long example, long token) = Math.DivRem(row, batch.Length);
                if (batch.HasMask && batch.Mask[(int)row] == 0)
                {
                    continue;
                }

                place = (int)((((example * padded) + token) * width) + column);
            }

            double apart = Math.Abs((double)expected[place] - found[i]);
            difference = apart > difference || double.IsNaN(apart) ? apart : difference;
            magnitude = Math.Max(magnitude, Math.Abs(expected[place]));
        }

        Assert.That(magnitude, Is.GreaterThan(0), name);
        return difference / magnitude;
    }
}
