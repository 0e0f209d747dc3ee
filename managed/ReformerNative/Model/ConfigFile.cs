using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;
using ReformerNative.Checkpoints;
using ReformerNative.Ops;

namespace ReformerNative.Model;

/// <summary>
/// The JSON object a configuration was read from and the configuration as it was then: keys that did not change stay as
/// written.
/// </summary>
internal sealed record ConfigOrigin(JsonObject Json, ReformerConfig Parsed);

/// <summary>Reads and writes <c>config.json</c>: one table entry for each key.</summary>
internal static class ConfigFile
{
    private const int MaximumBytes = 16 << 20;

    private static readonly string[] Layers = ["lsh", "local", "full", "auto"];
    private static readonly AttentionKind[] Kinds =
        [AttentionKind.Lsh, AttentionKind.Local, AttentionKind.Full, AttentionKind.Auto];
    private static readonly string[] Residuals = ["float", "exact"];
    private static readonly string[] Combines = ["concatenate", "mean"];
    private static readonly string[] Presets = [.. AttentionPreset.All.Select(preset => preset.Name)];
    private static readonly string[] Windows = ["slots", "same_bucket", "strict"];
    private static readonly string[] Duplicates = ["none", "log_count"];
    private static readonly string[] KeyNorms = ["none", "rms", "l2"];
    private static readonly string[] Scopes = ["layer", "head", "example"];
    private static readonly string[] Architectures = [.. HeadKind.All.Select(head => head.Architecture)];

    /// <summary>
    /// What a file without our own keys means: that of Hugging Face, whose residual is plain addition.
    /// </summary>
    private static readonly ReformerConfig Absent = new() { Residual = ResidualMode.Float };

    private static readonly Key[] Keys =
    [
        new(
            "architectures", c => new JsonArray(HeadKind.Of(c.Task).Architecture),
            (c, v) => c with { Task = Architecture(v, c) }),
        new("attention_head_size", c => c.AttentionHeadSize, (c, v) => c with { AttentionHeadSize = v.Int() }),
        new("attn_layers", c => Array(c.AttnLayers, kind => Layers[System.Array.IndexOf(Kinds, kind)]),
            (c, v) => c with { AttnLayers = v.List(item => Kinds[item.OneOf(Layers)]) }),
        new("axial_norm_std", c => c.AxialNormStd, (c, v) => c with { AxialNormStd = v.Double() }),
        new(
            "axial_pos_embds", c => c.Positions == PositionEncoding.Axial,
            (c, v) => c with { Positions = v.Bool() ? PositionEncoding.Axial : PositionEncoding.Learned }),
        new(
            "axial_pos_embds_dim", c => Array(c.AxialPosEmbdsDim, n => n),
            (c, v) => c with { AxialPosEmbdsDim = v.List(item => item.Int()) }),
        new(
            "axial_pos_shape", c => Array(c.AxialPosShape, n => n),
            (c, v) => c with { AxialPosShape = v.List(item => item.Int()) }),
        new(
            "chunk_size_feed_forward", c => c.ChunkSizeFeedForward,
            (c, v) => c with { ChunkSizeFeedForward = v.Int() }),
        new("chunk_size_lm_head", c => c.ChunkSizeLmHead, (c, v) => c with { ChunkSizeLmHead = v.Int() }),
        new(
            "classifier_dropout", c => c.ClassifierDropout,
            (c, v) => c with { ClassifierDropout = v.IsNull ? null : v.Double() }),
        new("eos_token_id", c => c.EosTokenId, (c, v) => c with { EosTokenId = v.IsNull ? null : v.Int() }),
        new("feed_forward_size", c => c.FeedForwardSize, (c, v) => c with { FeedForwardSize = v.Int() }),
        new(
            "hash_seed", c => c.HashSeed, (c, v) => c with { HashSeed = v.IsNull ? null : v.Int() },
            Layers: ConfigRules.LshKinds),
        new("hidden_act", c => c.HiddenAct, (c, v) => c with { HiddenAct = v.Text() }),
        new("hidden_dropout_prob", c => c.HiddenDropoutProb, (c, v) => c with { HiddenDropoutProb = v.Double() }),
        new("hidden_size", c => c.HiddenSize, (c, v) => c with { HiddenSize = v.Int() }),
        new("initializer_range", c => c.InitializerRange, (c, v) => c with { InitializerRange = v.Double() }),
        new("is_decoder", c => c.IsDecoder, (c, v) => c with { IsDecoder = v.Bool() }),
        new("layer_norm_eps", c => c.LayerNormEps, (c, v) => c with { LayerNormEps = v.Double() }),
        new(
            "local_attention_probs_dropout_prob", c => c.LocalAttentionProbsDropoutProb,
            (c, v) => c with { LocalAttentionProbsDropoutProb = v.Double() }, Layers: ConfigRules.LocalDropoutKinds),
        new(
            "local_attn_chunk_length", c => c.LocalAttnChunkLength,
            (c, v) => c with { LocalAttnChunkLength = v.Int() }, Layers: ConfigRules.LocalKinds),
        new(
            "local_num_chunks_after", c => c.LocalNumChunksAfter, (c, v) => c with { LocalNumChunksAfter = v.Int() },
            Layers: ConfigRules.LocalKinds),
        new(
            "local_num_chunks_before", c => c.LocalNumChunksBefore,
            (c, v) => c with { LocalNumChunksBefore = v.Int() }, Layers: ConfigRules.LocalKinds),
        new(
            "lsh_attention_probs_dropout_prob", c => c.LshAttentionProbsDropoutProb,
            (c, v) => c with { LshAttentionProbsDropoutProb = v.Double() }, Layers: ConfigRules.LshKinds),
        new(
            "lsh_attn_chunk_length", c => c.LshAttnChunkLength, (c, v) => c with { LshAttnChunkLength = v.Int() },
            Layers: ConfigRules.LshKinds),
        new(
            "lsh_num_chunks_after", c => c.LshNumChunksAfter, (c, v) => c with { LshNumChunksAfter = v.Int() },
            Layers: ConfigRules.LshKinds),
        new(
            "lsh_num_chunks_before", c => c.LshNumChunksBefore, (c, v) => c with { LshNumChunksBefore = v.Int() },
            Layers: ConfigRules.LshKinds),
        new(
            "max_position_embeddings", c => c.MaxPositionEmbeddings,
            (c, v) => c with { MaxPositionEmbeddings = v.Int() }),
        new("model_type", _ => "reformer", (c, v) => v.OneOf(["reformer"]) == 0 ? c : c),
        new("num_attention_heads", c => c.NumAttentionHeads, (c, v) => c with { NumAttentionHeads = v.Int() }),
        new(
            "num_buckets", c => Buckets(c.NumBuckets),
            (c, v) => c with { NumBuckets = v.IsNull ? null : v.ListOrOne(item => item.Int()) },
            Layers: ConfigRules.LshKinds),
        new(
            "num_hashes", c => c.NumHashes, (c, v) => c with { NumHashes = v.Int() },
            Layers: ConfigRules.LshKinds),
        new("num_hidden_layers", c => c.AttnLayers.Count, (c, v) => LayerCount(c, v)),
        new("pad_token_id", c => c.PadTokenId, (c, v) => c with { PadTokenId = v.IsNull ? null : v.Int() }),
        new("tie_word_embeddings", c => c.TieWordEmbeddings, (c, v) => c with { TieWordEmbeddings = v.Bool() }),
        new("vocab_size", c => c.VocabSize, (c, v) => c with { VocabSize = v.Int() }),

        // Keys that can ask for another model than there is here.
        Only("is_encoder_decoder", "false (no model here has an encoder beside its decoder)", "false"),
        Only("add_cross_attention", "false (no layer here attends to another sequence)", "false"),
        Only(
            "problem_type", "single_label_classification (the only loss of classifiers here)",
            "\"single_label_classification\""),
        Only("pruned_heads", "no heads (no layer here lacks some)", "{}", "[]"),

        // Additions: written only where they say something else than their absence does.
        new("num_labels", c => c.NumLabels, (c, v) => c with { NumLabels = v.Int() }, Addition: true),
        new(
            "position_embeddings",
            c => c.Positions == PositionEncoding.None ? "none" : null,
            (c, v) =>
                c with
                {
                    Positions =
                        v.IsNull ? c.Positions
                        : v.OneOf(["none"]) == 0 ? PositionEncoding.None
                        : c.Positions,
                },
            Addition: true
        ),
        new(
            "residual", c => Residuals[(int)c.Residual],
            (c, v) => c with { Residual = (ResidualMode)v.OneOf(Residuals) }, Addition: true),
        new(
            "residual_grid_exponent", c => c.ResidualGridExponent, (c, v) => c with { ResidualGridExponent = v.Int() },
            Addition: true),
        new(
            "final_combine", c => Combines[(int)c.FinalCombine],
            (c, v) => c with { FinalCombine = (StreamCombination)v.OneOf(Combines) }, Addition: true),
        new("label_smoothing", c => c.LabelSmoothing, (c, v) => c with { LabelSmoothing = v.Double() }, Addition: true),
        new(
            "lsh_preset", c => c.LshPreset.Name, (c, v) => c with { LshPreset = AttentionPreset.All[v.OneOf(Presets)] },
            Addition: true),
        new(
            "lsh_window", c => Name(Windows, (int?)c.LshWindow),
            (c, v) => c with { LshWindow = v.IsNull ? null : (AttentionWindow)v.OneOf(Windows) }, Addition: true),
        new(
            "lsh_duplicates", c => Name(Duplicates, (int?)c.LshDuplicates),
            (c, v) => c with { LshDuplicates = v.IsNull ? null : (DuplicateCorrection)v.OneOf(Duplicates) },
            Addition: true),
        new(
            "lsh_key_norm", c => Name(KeyNorms, (int?)c.LshKeyNorm),
            (c, v) => c with { LshKeyNorm = v.IsNull ? null : (KeyNorm)v.OneOf(KeyNorms) }, Addition: true),
        new(
            "lsh_logit_scale", c => c.LshLogitScale, (c, v) => c with { LshLogitScale = v.IsNull ? null : v.Double() },
            Addition: true),
        new("lsh_wrap", c => c.LshWrap, (c, v) => c with { LshWrap = v.IsNull ? null : v.Bool() }, Addition: true),
        new(
            "lsh_repeat_chunks", c => c.LshRepeatChunks,
            (c, v) => c with { LshRepeatChunks = v.IsNull ? null : v.Bool() }, Addition: true),
        new(
            "lsh_rotation_scope", c => Name(Scopes, (int?)c.LshRotationScope),
            (c, v) => c with { LshRotationScope = v.IsNull ? null : (RotationScope)v.OneOf(Scopes) }, Addition: true),
        new("local_wrap", c => c.LocalWrap, (c, v) => c with { LocalWrap = v.Bool() }, Addition: true),
    ];

    public static ReformerConfig Load(string path) =>
        Parse(RegularFile.ReadText(path, "a configuration file", MaximumBytes), path);

    public static ReformerConfig Parse(string json, string name)
    {
        JsonObject source = ParseObject(json, name);
        var problems = new List<string>();
        ReformerConfig config = Absent;
        foreach (Key key in Keys)
        {
            bool matters = key.Layers is not { } kinds || config.AttnLayers.Any(kinds.Contains);
            if (matters && source.TryGetPropertyValue(key.Name, out JsonNode? value))
            {
                try
                {
                    config = key.Read(config, new ConfigValue(value));
                }
                catch (ConfigValueException error)
                {
                    problems.Add($"{key.Name}: {error.Message}");
                }
            }
        }

        // Without a known architecture the direction decides; a map of labels counts them.
        if (!source.ContainsKey("architectures") || source["architectures"] is null)
        {
            config = config with
            {
                Task = config.IsDecoder ? ReformerTask.CausalLanguageModel : ReformerTask.MaskedLanguageModel,
            };
        }

        if (source["id2label"] is JsonObject labels && !source.ContainsKey("num_labels") && labels.Count > 0)
        {
            config = config with { NumLabels = labels.Count };
        }

        problems.AddRange(ConfigRules.Check(config));
        return problems.Count == 0
            ? config with { Origin = new ConfigOrigin(source, config) }
            : throw new ReformerFormatException(name, string.Join("; ", problems));
    }

    public static string Write(ReformerConfig config)
    {
        JsonObject target = config.Origin is { } origin ? origin.Json.DeepClone().AsObject() : [];
        foreach (Key key in Keys)
        {
            JsonNode? now = key.Write(config);
            ReformerConfig? before = config.Origin?.Parsed ?? (key.Addition ? Absent : null);
            if (before is null || !JsonNode.DeepEquals(now, key.Write(before)))
            {
                target[key.Name] = now;
            }
        }

        // A map of labels that no longer fits would win over num_labels.
        if (config.Origin is { } read && read.Parsed.NumLabels != config.NumLabels)
        {
            target.Remove("id2label");
            target.Remove("label2id");
        }

        var options = new JsonSerializerOptions
        {
            WriteIndented = true,
            NewLine = "\n",
            Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
        };
        return target.ToJsonString(options) + "\n";
    }

    private static JsonObject ParseObject(string json, string name)
    {
        try
        {
            var options = new JsonDocumentOptions { MaxDepth = 64, AllowDuplicateProperties = false };
            return JsonNode.Parse(json, documentOptions: options) as JsonObject
                ?? throw new ReformerFormatException(name, "expected a JSON object, found another value");
        }
        catch (JsonException error)
        {
            throw ReformerFormatException.FromJson(name, "JSON", error);
        }
    }

    /// <summary>A key of which null and one meaning alone are supported; it is written back as it was read.</summary>
    private static Key Only(string name, string expected, params string[] supported) => new(
        name, _ => null,
        (c, v) => v.IsNull || supported.Contains(v.Json) ? c : throw new ConfigValueException(expected, v.Json),
        Addition: true);

    private static ReformerTask Architecture(ConfigValue value, ReformerConfig config) =>
        value.IsNull || value.List(item => HeadKind.All[item.OneOf(Architectures)].Task) is not [var task, ..]
            ? config.Task
            : task;

    private static ReformerConfig LayerCount(ReformerConfig config, ConfigValue value) =>
        value.Int() == config.AttnLayers.Count
            ? config
            : throw new ConfigValueException($"the length of attn_layers ({config.AttnLayers.Count})", value.Int());

    private static JsonNode? Buckets(IReadOnlyList<int>? factors) => factors switch
    {
        null => null,
        [int one] => one,
        _ => Array(factors, n => n),
    };

    private static JsonArray Array<T>(IReadOnlyList<T> items, Func<T, JsonNode> node) => new([.. items.Select(node)]);

    private static string? Name(string[] names, int? index) => index is int i ? names[i] : null;

    /// <summary>One key of the file.</summary>
    /// <param name="Name">Its name.</param>
    /// <param name="Write">The value that a configuration has for it.</param>
    /// <param name="Read">The configuration with the value of the file.</param>
    /// <param name="Addition">Whether it is written only where it says something else than its absence does.</param>
    /// <param name="Layers">Kinds of the layers that it is for, null for all. Without such layers it is not read, and
    /// may have any value; it stands behind <c>attn_layers</c>.</param>
    private sealed record Key(
        string Name, Func<ReformerConfig, JsonNode?> Write, Func<ReformerConfig, ConfigValue, ReformerConfig> Read,
        bool Addition = false, AttentionKind[]? Layers = null);
}
