using System.Text.Json.Nodes;
using ReformerNative.Checkpoints;
using ReformerNative.Model;
using ReformerNative.Ops;

namespace ReformerNative.Tests.Model;

public sealed class ConfigTests
{
    [Test]
    public void EmptyObject_Parsed_IsHuggingFacesDefaultWithPlainResidual()
    {
        ReformerConfig config = ReformerConfig.Parse("{}");
        Assert.Multiple(() =>
        {
            Assert.That(config.AttentionHeadSize, Is.EqualTo(64));
            Assert.That(
                config.AttnLayers,
                Is.EqualTo(Enumerable.Repeat(new[] { AttentionKind.Local, AttentionKind.Lsh }, 3).SelectMany(x => x)));
            Assert.That(config.AxialNormStd, Is.EqualTo(1));
            Assert.That(config.AxialPosShape, Is.EqualTo(new[] { 64, 64 }));
            Assert.That(config.AxialPosEmbdsDim, Is.EqualTo(new[] { 64, 192 }));
            Assert.That(config.Positions, Is.EqualTo(PositionEncoding.Axial));
            Assert.That(config.ChunkSizeLmHead, Is.Zero);
            Assert.That(config.EosTokenId, Is.EqualTo(2));
            Assert.That(config.FeedForwardSize, Is.EqualTo(512));
            Assert.That(config.HashSeed, Is.Null);
            Assert.That(config.HiddenAct, Is.EqualTo("relu"));
            Assert.That(config.HiddenDropoutProb, Is.EqualTo(0.05));
            Assert.That(config.HiddenSize, Is.EqualTo(256));
            Assert.That(config.InitializerRange, Is.EqualTo(0.02));
            Assert.That(config.IsDecoder, Is.False);
            Assert.That(config.LayerNormEps, Is.EqualTo(1e-12));
            Assert.That(config.LocalAttentionProbsDropoutProb, Is.EqualTo(0.05));
            Assert.That(config.LshAttentionProbsDropoutProb, Is.Zero);
            Assert.That((config.LocalAttnChunkLength, config.LshAttnChunkLength), Is.EqualTo((64, 64)));
            Assert.That((config.LocalNumChunksBefore, config.LocalNumChunksAfter), Is.EqualTo((1, 0)));
            Assert.That((config.LshNumChunksBefore, config.LshNumChunksAfter), Is.EqualTo((1, 0)));
            Assert.That(config.MaxPositionEmbeddings, Is.EqualTo(4096));
            Assert.That(config.NumAttentionHeads, Is.EqualTo(12));
            Assert.That(config.NumBuckets, Is.Null);
            Assert.That(config.NumHashes, Is.EqualTo(1));
            Assert.That(config.NumLabels, Is.EqualTo(2));
            Assert.That(config.PadTokenId, Is.Zero);
            Assert.That(config.TieWordEmbeddings, Is.False);
            Assert.That(config.VocabSize, Is.EqualTo(320));
            Assert.That(config.Task, Is.EqualTo(ReformerTask.MaskedLanguageModel));
            Assert.That(config.Residual, Is.EqualTo(ResidualMode.Float));
            Assert.That(config.LshPreset, Is.EqualTo(AttentionPreset.HuggingFace));
            Assert.That(config.ToJson(), Is.EqualTo("{}\n"), "nothing was changed");
        });
    }

    [Test]
    public void UnknownKeys_WrittenBack_AreAsTheyWere()
    {
        const string json = """
            {
              "_name_or_path": "x/y",
              "hidden_size": 256,
              "layer_norm_eps": 1e-12,
              "nested": {
                "é": [
                  1.50,
                  null
                ]
              }
            }

            """;
        ReformerConfig config = ReformerConfig.Parse(json);
        Assert.That(config.ToJson(), Is.EqualTo(json));
        JsonNode changed = JsonNode.Parse(
            (config with { NumHashes = 8, VocabSize = 320, NumBuckets = [64, 128] }).ToJson())!;
        Assert.Multiple(() =>
        {
            Assert.That((int)changed["num_hashes"]!, Is.EqualTo(8));
            Assert.That(changed["num_buckets"]!.ToJsonString(), Is.EqualTo("[64,128]"));
            Assert.That((string)changed["_name_or_path"]!, Is.EqualTo("x/y"));
            Assert.That(changed["vocab_size"], Is.Null, "not written before, not changed");
        });
    }

    public static IEnumerable<ReformerConfig> Written()
    {
        yield return new ReformerConfig { Task = ReformerTask.MaskedLanguageModel };
        foreach (string name in ReformerPresets.Names)
        {
            yield return ReformerPresets.FromName(name);
        }

        yield return ReformerPresets.Text with
        {
            Positions = PositionEncoding.None,
            AttnLayers = [AttentionKind.Full, AttentionKind.Lsh, AttentionKind.Auto],
            LshPreset = AttentionPreset.Paper,
            LshWindow = AttentionWindow.Slots,
            LshDuplicates = DuplicateCorrection.None,
            LshKeyNorm = KeyNorm.L2,
            LshLogitScale = 0.5,
            LshWrap = true,
            LshRepeatChunks = true,
            LshRotationScope = RotationScope.Shared,
            LocalWrap = false,
            FinalCombine = StreamCombination.Mean,
            LabelSmoothing = 0.1,
            Residual = ResidualMode.Float,
            ResidualGridExponent = -12,
            HashSeed = 7,
            EosTokenId = null,
            ClassifierDropout = 0.25,
            NumBuckets = [2],
        };
        yield return new ReformerConfig
        {
            Task = ReformerTask.SequenceClassification,
            NumLabels = 5,
            PadTokenId = null,
        };
    }

    [TestCaseSource(nameof(Written))]
    public void Config_WrittenAndParsed_IsTheSame(ReformerConfig config)
    {
        ReformerConfig parsed = ReformerConfig.Parse(config.ToJson());
        Assert.That(parsed.ToJson(), Is.EqualTo(config.ToJson()));
        foreach (System.Reflection.PropertyInfo property in typeof(ReformerConfig).GetProperties())
        {
            Assert.That(property.GetValue(parsed), Is.EqualTo(property.GetValue(config)), property.Name);
        }
    }

    [TestCase("""{"hidden_size": "abc"}""", "hidden_size: expected a 32-bit integer, found \"abc\"")]
    [TestCase("""{"hidden_size": 2.5}""", "hidden_size: expected a 32-bit integer, found 2.5")]
    [TestCase("""{"hidden_size": 3000000000}""", "hidden_size: expected a 32-bit integer, found 3000000000")]
    [TestCase("""{"hidden_size": 0}""", "hidden_size: expected an integer from 1 up, found 0")]
    [TestCase("""{"hidden_dropout_prob": 1}""", "hidden_dropout_prob: expected 0 <= p < 1, found 1")]
    [TestCase("""{"layer_norm_eps": 0}""", "layer_norm_eps: expected a finite number above 0, found 0")]
    [TestCase("""{"layer_norm_eps": 1e400}""", "layer_norm_eps: expected")]
    [TestCase("""{"is_decoder": 1}""", "is_decoder: expected true or false, found 1")]
    [TestCase("""{"attn_layers": []}""", "attn_layers: expected at least one layer")]
    [TestCase(
        """{"attn_layers": ["lsh", "LSH"]}""",
        "attn_layers: expected one of lsh, local, full, auto, found \"LSH\""
    )]
    [TestCase("""{"attn_layers": "lsh"}""", "attn_layers: expected a list, found \"lsh\"")]
    [TestCase("""{"num_hidden_layers": 5}""", "num_hidden_layers: expected the length of attn_layers (6), found 5")]
    [TestCase(
        """{"num_buckets": [4, 3]}""",
        "num_buckets: expected null, an even number from 2 up, or 1 to 8 of them, found [4, 3]"
    )]
    [TestCase("""{"num_buckets": 0}""", "num_buckets: expected")]
    [TestCase("""{"num_buckets": [65536, 65536]}""", "num_buckets: expected a product below 2^31")]
    [TestCase(
        """{"axial_pos_embds_dim": [64, 64]}""",
        "axial_pos_embds_dim: expected a sum of hidden_size (256), found [64, 64]"
    )]
    [TestCase("""{"axial_pos_shape": [64]}""", "axial_pos_embds_dim: expected as many")]
    [TestCase("""{"hidden_act": "mish"}""", "hidden_act: expected one of relu,")]
    [TestCase("""{"model_type": "bert"}""", "model_type: expected reformer, found \"bert\"")]
    [TestCase("""{"architectures": ["BertModel"]}""", "architectures: expected one of ReformerModelWithLMHead,")]
    [TestCase(
        """{"architectures": ["ReformerModelWithLMHead"]}""",
        "is_decoder: expected true for a causal language model"
    )]
    [TestCase(
        """{"is_decoder": true, "lsh_num_chunks_after": 1}""",
        "lsh_num_chunks_after: expected 0, because is_decoder is true, found 1"
    )]
    [TestCase("""{"lsh_preset": "strict"}""", "is_decoder: expected true, because the LSH window is strict")]
    [TestCase(
        """{"attn_layers": ["auto"], "num_hidden_layers": 1, "lsh_preset": "strict"}""",
        "is_decoder: expected true, because the LSH window"
    )]
    [TestCase("""{"lsh_preset": "other"}""", "lsh_preset: expected one of trax, hf, paper, lucidrains, strict")]
    [TestCase("""{"tie_word_embeddings": true}""", "tie_word_embeddings: expected false")]
    [TestCase("""{"residual_grid_exponent": 0}""", "residual_grid_exponent: expected an integer of -24 .. -4, found 0")]
    [TestCase("""{"is_encoder_decoder": true}""", "is_encoder_decoder: expected false")]
    [TestCase("""{"add_cross_attention": true}""", "add_cross_attention: expected false")]
    [TestCase("""{"problem_type": "regression"}""", "problem_type: expected single_label_classification")]
    [TestCase("""{"pruned_heads": {"0": [1]}}""", "pruned_heads: expected no heads")]
    [TestCase(
        """{"architectures": ["ReformerForSequenceClassification"], "num_labels": 1}""",
        "num_labels: expected 2 or more"
    )]
    [TestCase(
        """{"architectures": ["ReformerForSequenceClassification"], "id2label": {"0": "score"}}""",
        "num_labels: expected 2 or more"
    )]
    [TestCase("""{"hidden_size": 2147483647}""", "hidden_size: expected an integer up to 16777216, found 2147483647")]
    [TestCase("""{"feed_forward_size": 2147483647}""", "feed_forward_size: expected an integer up to 16777216")]
    [TestCase("""{"num_attention_heads": 2147483647}""", "num_attention_heads: expected an integer up to 16777216")]
    [TestCase("""{"attention_head_size": 2147483647}""", "attention_head_size: expected an integer up to 16777216")]
    [TestCase("""{"lsh_attn_chunk_length": 2147483647}""", "lsh_attn_chunk_length: expected an integer up to 16777216")]
    [TestCase("""{"local_num_chunks_before": 2147483647}""", "local_num_chunks_before: expected an integer up to")]
    [TestCase("""{"num_hashes": 2147483647}""", "num_hashes: expected an integer up to 65536")]
    [TestCase(
        """{"axial_pos_shape": [2147483647, 2147483647, 2147483647], "axial_pos_embds_dim": [64, 64, 128]}""",
        "axial_pos_shape: expected a product below 2^63"
    )]
    [TestCase("""{"lsh_attn_chunk_length": null}""", "lsh_attn_chunk_length: expected a 32-bit integer, found null")]
    [TestCase("""{"hidden_size": 1, "hidden_size": 2}""", "expected JSON")]
    [TestCase("""{"hidden_size": 1""", "expected JSON")]
    [TestCase("""[1]""", "expected a JSON object")]
    [TestCase("", "expected JSON")]
    public void BadConfig_Parsed_NamesFileKeyExpectedAndFound(string json, string message)
    {
        ReformerFormatException error = Assert.Throws<ReformerFormatException>(() =>
            ReformerConfig.Parse(json, "some/config.json")
        )!;
        Assert.That(error.Message, Does.StartWith("some/config.json: ").And.Contain(message));
    }

    /// <summary>A published configuration of local layers alone has null for the keys of LSH.</summary>
    [TestCase("local", "lsh_attn_chunk_length", "null")]
    [TestCase("local", "lsh_attn_chunk_length", "0")]
    [TestCase("local", "num_hashes", "null")]
    [TestCase("local", "num_buckets", "[3]")]
    [TestCase("local", "lsh_attention_probs_dropout_prob", "null")]
    [TestCase("lsh", "local_attn_chunk_length", "null")]
    [TestCase("lsh", "local_num_chunks_before", "-1")]
    [TestCase("full", "lsh_num_chunks_after", "null")]
    public void KeyOfAbsentLayers_WithAnyValue_IsKeptAndDoesNotMatter(string kind, string key, string value)
    {
        string json = $$"""
            {
              "attn_layers": ["{{kind}}"],
              "is_decoder": true,
              "num_hidden_layers": 1,
              "{{key}}": {{value}}
            }
            """;
        ReformerConfig config = ReformerConfig.Parse(json);
        Assert.That(JsonNode.Parse(config.ToJson())![key]?.ToJsonString() ?? "null", Is.EqualTo(value));
        Assert.That(new ParameterLayout(config).Count, Is.Positive);
        Assert.That(LayerForms.PaddedLength(config, 100, fullAttention: false), Is.GreaterThanOrEqualTo(100));
    }

    [Test]
    public void KeysOfOtherModels_SayingTheUsual_AreKept()
    {
        const string json = """
            {
              "is_encoder_decoder": false,
              "add_cross_attention": null,
              "problem_type": null,
              "pruned_heads": {},
              "num_labels": 1
            }
            """;
        Assert.That(
            JsonNode.DeepEquals(JsonNode.Parse(ReformerConfig.Parse(json).ToJson()), JsonNode.Parse(json)), Is.True);
    }

    [Test]
    public void ManyProblems_Validated_AreAllListed()
    {
        ReformerConfig config = new() { VocabSize = 0, NumHashes = -1, HiddenAct = "?", LabelSmoothing = double.NaN };
        ReformerConfigException error = Assert.Throws<ReformerConfigException>(config.Validate)!;
        Assert.Multiple(() =>
        {
            Assert.That(error.Problems.Select(problem => problem.Split(':')[0]),
                Is.EquivalentTo(new[] { "vocab_size", "num_hashes", "hidden_act", "label_smoothing", "is_decoder" }));
            Assert.That(error.Message, Does.Contain("label_smoothing: expected 0 <= p < 1, found NaN"));
        });
    }

    [Test]
    public void RandomDamage_Parsed_ThrowsNothingButFormatException()
    {
        const int seed = 77;
        var random = new Random(seed);
        string whole = File.ReadAllText(Repository.PathOf("tests", "vectors", "hf", "lm-mixed-axial", "config.json"));
        int refused = 0;
        for (int trial = 0; trial < 2000; trial++)
        {
            char[] damaged = whole.ToCharArray();
            for (int i = random.Next(1, 5); i > 0; i--)
            {
                damaged[random.Next(damaged.Length)] = (char)random.Next(9, 127);
            }

            try
            {
                ReformerConfig.Parse(
                    new string(damaged)[..random.Next(trial % 2 == 0 ? damaged.Length : 0, damaged.Length + 1)]);
            }
            catch (ReformerFormatException)
            {
                refused++;
            }
            catch (Exception error)
            {
                throw new AssertionException($"seed {seed}, trial {trial}: {error}", error);
            }
        }

        Assert.That(refused, Is.InRange(1000, 1999));
    }

    [Test]
    public void Load_OfNothingAndOfADirectory_SaysWhatIsThere()
    {
        using var directory = new TemporaryDirectory();
        Assert.Multiple(() =>
        {
            Assert.That(
                () => ReformerConfig.Load(directory.File("no")),
                Throws.TypeOf<FileNotFoundException>().With.Message.Contains("nothing"));
            Assert.That(
                () => ReformerConfig.Load(directory.Path),
                Throws.TypeOf<FileNotFoundException>().With.Message.Contains("a directory"));
        });
    }

    [TestCase("enwik8", 149_182_722)]
    [TestCase("crime-and-punishment", 2_748_224)]
    public void PublishedShapes_ParameterCount_IsThePublishedOne(string preset, long count) =>
        Assert.That(new ParameterLayout(ReformerPresets.FromName(preset)).Count, Is.EqualTo(count));

    [TestCase(12, false, 12)]
    [TestCase(16, false, 16)]
    [TestCase(17, false, 96)]
    [TestCase(96, false, 96)]
    [TestCase(97, false, 192)]
    [TestCase(20, true, 20)]
    [TestCase(40, true, 64)]
    public void PaddedLength_OfMixedChunks_IsTheCommonMultipleBeyondTheSmallest(
        int length, bool fullAttention, long padded)
    {
        ReformerConfig config = new() { LshAttnChunkLength = 48, LocalAttnChunkLength = 32 };
        config = fullAttention ? config : config with { LshAttnChunkLength = 16, LocalAttnChunkLength = 96 };
        Assert.That(LayerForms.PaddedLength(config, length, fullAttention), Is.EqualTo(padded));
    }

    /// <summary>With the length after it a layer takes another form, with its own it does not.</summary>
    [TestCase(10, 16)] // no layer has more than one chunk
    [TestCase(17, 48)] // local layers have
    [TestCase(49, int.MaxValue)] // LSH layers too
    public void LastLength_OfForms_IsTheLongestThatHasThem(int length, int last)
    {
        ReformerConfig config = new() { LocalAttnChunkLength = 16, LshAttnChunkLength = 48 };
        Assert.That(LayerForms.LastLength(config, length), Is.EqualTo(last));
        Assert.That(LayerForms.LastLength(config, Math.Min(last, 1 << 20)), Is.EqualTo(last));
    }

    [Test]
    public void LastLength_BelowACrossover_EndsBeforeIt()
    {
        ReformerConfig config =
            new() { AttnLayers = [AttentionKind.Auto], LshAttnChunkLength = 16, LocalAttnChunkLength = 16 };
        int crossover = (int)AttentionCost.Crossover(config)!.Value;
        Assert.That(LayerForms.LastLength(config, crossover - 1), Is.EqualTo(crossover - 1));
        Assert.That(LayerForms.LastLength(config, crossover - 2), Is.EqualTo(crossover - 1));
        Assert.That(LayerForms.LastLength(config, crossover), Is.EqualTo(int.MaxValue));
    }

    /// <summary>Sizes of the two published models and of the paper's duplication task.</summary>
    [Test]
    public void Presets_HaveThePublishedSizes()
    {
        ReformerConfig crime = ReformerPresets.CrimeAndPunishment, task = ReformerPresets.Duplication;
        Assert.Multiple(() =>
        {
            Assert.That(crime.MaxPositionEmbeddings, Is.EqualTo(524288));
            Assert.That(crime.AxialPosShape, Is.EqualTo(new[] { 512, 1024 }));
            Assert.That(crime.AxialPosEmbdsDim, Is.EqualTo(new[] { 64, 192 }));
            Assert.That((crime.HiddenSize, crime.FeedForwardSize, crime.VocabSize), Is.EqualTo((256, 512, 320)));
            Assert.That((crime.NumAttentionHeads, crime.AttentionHeadSize), Is.EqualTo((2, 64)));
            Assert.That(crime.NumBuckets, Is.EqualTo(new[] { 64, 128 }));
            Assert.That((crime.NumHashes, crime.AttnLayers.Count, crime.IsDecoder), Is.EqualTo((1, 6, true)));
            Assert.That((task.HiddenSize, task.FeedForwardSize, task.VocabSize), Is.EqualTo((256, 256, 128)));
            Assert.That((task.NumAttentionHeads, task.AttentionHeadSize, task.NumHashes), Is.EqualTo((4, 64, 4)));
            Assert.That((task.MaxPositionEmbeddings, task.LshAttnChunkLength), Is.EqualTo((1024, 16)));
            Assert.That(task.Positions, Is.EqualTo(PositionEncoding.Learned));
        });
    }

    [TestCase(-1, "the embedding, stream 2, example 3, token 4, channel 5: ")]
    [TestCase(0, "layer 0, stream 2, example 3, token 4, channel 5: ")]
    [TestCase(7, "layer 7, stream 2, example 3, token 4, channel 5: ")]
    public void RangeException_SaysWhere(int layer, string start)
    {
        var error = new ResidualRangeException(layer, 2, 3, 4, 5, 6, -16);
        Assert.That(
            error.Message, Does.StartWith(start + "expected a finite value within ±256, ").And.Contain("6 such"));
    }

    [Test]
    public void PaddedLength_BeyondTheLongest_IsRefusedWithTheLongest()
    {
        ReformerConfig config = new() { LshAttnChunkLength = 64, LocalAttnChunkLength = 64 };
        Assert.That(LayerForms.PaddedLength(config, 2_147_483_584, fullAttention: false), Is.EqualTo(2_147_483_584));
        Assert.That(
            () => LayerForms.PaddedLength(config, int.MaxValue, fullAttention: false),
            Throws.ArgumentException.With.Message.EqualTo(
                "length: expected at most 2147483584, a multiple of the chunks' lengths, found 2147483647"));
    }
}
