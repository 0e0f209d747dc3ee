using System.Globalization;
using System.Text.Json;

namespace ReformerNative.Oracle;

/// <summary>
/// What a model's run leaves: tensors under the names of the vectors' README, gradients by parameter name, buckets by
/// layer.
/// </summary>
public sealed record ModelResult(
    IReadOnlyDictionary<string, double[]> Tensors, IReadOnlyDictionary<string, double[]> Gradients,
    IReadOnlyDictionary<int, int[]> Buckets, int PaddedLength, bool[]? Mask, IReadOnlyList<int> Factors);

/// <summary>
/// A whole model of Hugging Face's configuration and parameter names: language model, masked language model or sequence
/// classifier. Activations are stored, so the backward pass is the plain one.
/// </summary>
public sealed class HuggingFaceModel(JsonElement config, IReadOnlyDictionary<string, double[]> parameters)
{
    private const string Layers = "reformer.encoder.layers.";
    private const string Norm = "reformer.encoder.layer_norm.";
    private const string Words = "reformer.embeddings.word_embeddings.weight";
    private const string LearnedPositions = "reformer.embeddings.position_embeddings.embedding.weight";
    private const string AxialPositions = "reformer.embeddings.position_embeddings.weights.";

    private int Width => Int("hidden_size");

    private bool IsClassifier => parameters.ContainsKey("classifier.out_proj.weight");

    /// <summary>Reads config.json and model.safetensors of a folder.</summary>
    public static HuggingFaceModel Load(string folder)
    {
        using var json = JsonDocument.Parse(File.ReadAllText(Path.Combine(folder, "config.json")));
        var stored = SafeTensors.Read(Path.Combine(folder, "model.safetensors"));
        return new(json.RootElement.Clone(), stored.ToDictionary(entry => entry.Key, entry => entry.Value.Values));
    }

    /// <summary>
    /// Forward and, where there are labels (-100 is ignored), loss and every gradient. Rotations by layer,
    /// [H,D,R,columns]; a layer that hashes needs its own. Randomness switches the configured dropouts on (its layer is
    /// set here).
    /// </summary>
    public ModelResult Run(
        int batch, int[] inputIds, bool[]? inputMask, int[]? labels, IReadOnlyDictionary<int, double[]> rotations,
        Randomness? randomness = null)
    {
        var length = inputIds.Length / batch;
        var tokens = PaddedLength(length);
        var ids = Pad(inputIds, batch, length, tokens, tokens > length ? Int("pad_token_id") : 0);
        var mask =
            inputMask is null && tokens == length
                ? null
                : Pad(inputMask ?? [.. inputIds.Select(_ => true)], batch, length, tokens, false);
        var factors = Factors(tokens);
        var hiddenDropout = randomness is null ? 0 : (float)Double("hidden_dropout_prob");
        var noLayer = (randomness ?? Randomness.None) with { Layer = -1 };

        var tensors = new Dictionary<string, double[]>();
        var buckets = new Dictionary<int, int[]>();
        var tables = Tables();
        var embeddings = Embedding.Forward(tables, ids, tokens, 0, hiddenDropout, noLayer);
        tensors["embeddings"] = embeddings;
        var inputs = new List<Streams> { new(embeddings, embeddings) };
        var kinds = config.GetProperty("attn_layers").EnumerateArray().Select(e => e.GetString()!).ToArray();
        for (var i = 0; i < kinds.Length; i++)
        {
            var output = Block.Forward(
                Options(i, kinds[i], batch, tokens, factors, mask, randomness), LayerParameters(i, kinds[i]),
                inputs[i].First, inputs[i].Second, mask, rotations.GetValueOrDefault(i));
            tensors[$"layers.{i}.self_attention"] = output.AttentionResult!;
            tensors[$"layers.{i}.attn_output"] = output.First;
            tensors[$"layers.{i}.hidden_states"] = output.Second;
            if (output.Buckets is not null)
            {
                buckets[i] = output.Buckets;
            }

            inputs.Add(output);
        }

        var epsilon = Double("layer_norm_eps");
        double[] normWeight = parameters[Norm + "weight"], normBias = parameters[Norm + "bias"];
        var (stream1, stream2) = (inputs[^1].First, inputs[^1].Second);
        var last = FinalNorm.Forward(
            Combine.Concatenate, stream1, stream2, Width, normWeight, normBias, epsilon, hiddenDropout, noLayer);
        tensors["last_hidden_state"] = Cut(last, batch, tokens, length);

        var gradients = new Dictionary<string, double[]>();
        var gradLast = Head(tensors, gradients, batch, length, labels);
        if (gradLast is null)
        {
            return new(tensors, gradients, buckets, tokens, mask, factors);
        }

        var norm = FinalNorm.Backward(
            Combine.Concatenate, stream1, stream2, Width, normWeight, epsilon, hiddenDropout, noLayer,
            Pad(gradLast, batch, length * 2 * Width, tokens * 2 * Width, 0.0));
        gradients[Norm + "weight"] = norm.Weight;
        gradients[Norm + "bias"] = norm.Bias;
        var gradStreams = new Streams(norm.Stream1, norm.Stream2);
        for (var i = kinds.Length - 1; i >= 0; i--)
        {
            var (before, parameterGradients) = Block.Backward(
                Options(i, kinds[i], batch, tokens, factors, mask, randomness), LayerParameters(i, kinds[i]),
                inputs[i].First, inputs[i].Second, gradStreams.First, gradStreams.Second, mask, null,
                inputs[i + 1].Buckets);
            foreach (var (name, values) in Named(i, kinds[i], parameterGradients))
            {
                gradients[name] = values;
            }

            gradStreams = before;
        }

        double[] gradEmbeddings = [.. gradStreams.First.Zip(gradStreams.Second, (a, b) => a + b)];
        var gradTables = Embedding.Backward(tables, ids, tokens, 0, hiddenDropout, noLayer, gradEmbeddings);
        gradients[Words] = gradTables.Word;
        for (var i = 0; i < gradTables.Positions.Count; i++)
        {
            gradients[parameters.ContainsKey(LearnedPositions) ? LearnedPositions : $"{AxialPositions}{i}"] =
                gradTables.Positions[i];
        }

        return new(tensors, gradients, buckets, tokens, mask, factors);
    }

    private static T[] Pad<T>(T[] values, int batch, int length, int padded, T filler) =>
        [
            .. Enumerable
                .Range(0, batch)
                .SelectMany(b =>
                    values.Skip(b * length).Take(length).Concat(Enumerable.Repeat(filler, padded - length))
                ),
        ];

    private static double[] Cut(double[] values, int batch, int padded, int length)
    {
        var row = values.Length / batch / padded;
        return [.. Enumerable.Range(0, batch).SelectMany(b => values.Skip(b * padded * row).Take(length * row))];
    }

    private static IEnumerable<(string Name, double[] Values)> Named(int layer, string kind, BlockParameters p)
    {
        var prefix = $"{Layers}{layer}.";
        foreach (var (name, values) in p.Tensors)
        {
            if (values is not null)
            {
                yield return (prefix + StoredName(name, kind), values);
            }
        }
    }

    private static string StoredName(string name, string kind) =>
        name switch
        {
            "attention_norm_weight" => "attention.layer_norm.weight",
            "attention_norm_bias" => "attention.layer_norm.bias",
            "query" => kind == "lsh"
                ? "attention.self_attention.query_key.weight"
                : "attention.self_attention.query.weight",
            "key" => "attention.self_attention.key.weight",
            "value" => "attention.self_attention.value.weight",
            "output" => "attention.output.dense.weight",
            "feed_forward_norm_weight" => "feed_forward.layer_norm.weight",
            "feed_forward_norm_bias" => "feed_forward.layer_norm.bias",
            "w1" => "feed_forward.dense.dense.weight",
            "b1" => "feed_forward.dense.dense.bias",
            "w2" => "feed_forward.output.dense.weight",
            "b2" => "feed_forward.output.dense.bias",
            _ => throw new ArgumentException($"no stored tensor for {name}"),
        };

    /// <summary>Logits, loss and the gradient with respect to last_hidden_state; null without labels.</summary>
    private double[]? Head(
        Dictionary<string, double[]> tensors, Dictionary<string, double[]> gradients, int batch, int length,
        int[]? labels)
    {
        var last = tensors["last_hidden_state"];
        if (IsClassifier)
        {
            double[] dense = parameters["classifier.dense.weight"], denseBias = parameters["classifier.dense.bias"];
            var first = last.Where((_, i) => i / (2 * Width) % length == 0).ToArray();
            var pooled = Linear.Forward(first, dense, denseBias, 2 * Width, Activation.Tanh);
            var gradPooled = Loss(
                tensors, gradients, pooled, "classifier.out_proj.weight", "classifier.out_proj.bias", labels);
            if (gradPooled is null)
            {
                return null;
            }

            var linear = Linear.Backward(first, dense, denseBias, 2 * Width, gradPooled, Activation.Tanh);
            gradients["classifier.dense.weight"] = linear.Weight;
            gradients["classifier.dense.bias"] = linear.Bias!;
            return Pad(linear.X, batch, 2 * Width, length * 2 * Width, 0.0);
        }

        // A causal model's position t predicts the label at t + 1; the last position predicts nothing.
        int[]? targets = labels is null || !Bool("is_decoder")
            ? labels
            : [.. labels.Select((_, i) => i % length == length - 1 ? -100 : labels[i + 1])];
        return Loss(tensors, gradients, last, "lm_head.decoder.weight", "lm_head.bias", targets);
    }

    private double[]? Loss(
        Dictionary<string, double[]> tensors, Dictionary<string, double[]> gradients, double[] x, string weightName,
        string biasName, int[]? targets)
    {
        var (weight, bias) = (parameters[weightName], parameters[biasName]);
        if (targets is null)
        {
            tensors["logits"] = Linear.Forward(x, weight, bias, weight.Length / bias.Length);
            return null;
        }

        var result = HeadLoss.Run(x, weight, bias, weight.Length / bias.Length, targets, -100);
        tensors["logits"] = result.Logits;
        tensors["loss"] = [result.Statistics[0] / result.Statistics[1]];
        gradients[weightName] = result.GradWeight;
        gradients[biasName] = result.GradBias!;
        return result.GradX;
    }

    private EmbeddingTables Tables()
    {
        var positions = parameters.TryGetValue(LearnedPositions, out var learned)
            ? [learned]
            : parameters
                .Keys.Where(k => k.StartsWith(AxialPositions, StringComparison.Ordinal))
                .Order(StringComparer.Ordinal)
                .Select(k => parameters[k])
                .ToArray();
        int[] widths = learned is not null
            ? [Width]
            : [.. config.GetProperty("axial_pos_embds_dim").EnumerateArray().Select(e => e.GetInt32())];
        return new(Width, parameters[Words], positions, widths);
    }

    private BlockParameters LayerParameters(int layer, string kind)
    {
        double[] Get(string name) => parameters[$"{Layers}{layer}.{StoredName(name, kind)}"];
        return new()
        {
            AttentionNormWeight = Get("attention_norm_weight"),
            AttentionNormBias = Get("attention_norm_bias"),
            Query = Get("query"),
            Key = kind == "lsh" ? null : Get("key"),
            Value = Get("value"),
            Output = Get("output"),
            FeedForwardNormWeight = Get("feed_forward_norm_weight"),
            FeedForwardNormBias = Get("feed_forward_norm_bias"),
            FeedForward = new(Get("w1"), Get("b1"), Get("w2"), Get("b2")),
        };
    }

    private BlockOptions Options(
        int layer, string kind, int batch, int tokens, IReadOnlyList<int> factors, bool[]? mask, Randomness? randomness)
    {
        var isLsh = kind == "lsh";
        var chunk = Int($"{kind}_attn_chunk_length");
        var hiddenDropout = randomness is null ? 0 : (float)Double("hidden_dropout_prob");
        return new()
        {
            Attention = new()
            {
                // A sequence of one chunk is attended to as a whole.
                Kind = tokens <= chunk ? AttentionKind.Full : isLsh ? AttentionKind.Lsh : AttentionKind.Local,
                SharedQk = isLsh,
                Causal = Bool("is_decoder"),
                Wrap = true,
                RepeatChunks = true,
                KeyNorm = isLsh ? KeyNorm.Rms : KeyNorm.None,
                Rounds = isLsh ? Int("num_hashes") : 1,
                Factors = factors,
                PadBucket = mask is not null,
                ChunksBefore = Int($"{kind}_num_chunks_before"),
                ChunksAfter = Int($"{kind}_num_chunks_after"),
                Dropout = randomness is null ? 0 : (float)Double($"{kind}_attention_probs_dropout_prob"),
                ChunkLength = chunk,
            },
            Batch = batch,
            Tokens = tokens,
            Width = Width,
            Heads = Int("num_attention_heads"),
            Activation = config.GetProperty("hidden_act").GetString() switch
            {
                "relu" => Activation.Relu,
                "gelu" => Activation.GeluErf,
                "gelu_new" => Activation.GeluTanh,
                "silu" => Activation.Silu,
                var other => throw new NotSupportedException($"hidden_act {other}"),
            },
            LayerNormEpsilon = Double("layer_norm_eps"),
            AttentionOutputDropout = hiddenDropout,
            FeedForwardDropout = hiddenDropout,
            Randomness = (randomness ?? Randomness.None) with { Layer = layer },
        };
    }

    private int PaddedLength(int length)
    {
        var chunks = config
            .GetProperty("attn_layers")
            .EnumerateArray()
            .Select(e => Int($"{e.GetString()}_attn_chunk_length"))
            .Distinct()
            .ToArray();
        var multiple = chunks.Aggregate(LeastCommonMultiple);
        return length % multiple == 0 || length <= chunks.Min()
            ? length
            : (length + multiple - 1) / multiple * multiple;
    }

    private static int LeastCommonMultiple(int a, int b) =>
        Enumerable.Range(1, b).Select(i => a * i).First(n => n % b == 0);

    private int[] Factors(int tokens) =>
        config.GetProperty("num_buckets") switch
        {
            { ValueKind: JsonValueKind.Number } number => [number.GetInt32()],
            { ValueKind: JsonValueKind.Array } list => [.. list.EnumerateArray().Select(e => e.GetInt32())],
            _ => Lsh.AutomaticBuckets(
                BucketRule.HuggingFace, tokens, Int("lsh_attn_chunk_length"), Int("max_position_embeddings")),
        };

    private int Int(string name) =>
        config.GetProperty(name).ValueKind == JsonValueKind.Number
            ? config.GetProperty(name).GetInt32()
            : throw new FormatException(string.Create(CultureInfo.InvariantCulture, $"config: {name} is no number"));

    private double Double(string name) => config.GetProperty(name).GetDouble();

    private bool Bool(string name) => config.GetProperty(name).GetBoolean();
}
