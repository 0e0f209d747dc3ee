using ReformerNative.Checkpoints;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Tests.Model;

public sealed class ModelTests
{
    /// <summary>Two layers of each kind at a width that needs no time.</summary>
    internal static readonly ReformerConfig Small = ReformerPresets.Text with
    {
        AttentionHeadSize = 8,
        AttnLayers = [AttentionKind.Local, AttentionKind.Lsh],
        AxialPosShape = [16, 16],
        AxialPosEmbdsDim = [8, 16],
        FeedForwardSize = 40,
        HiddenSize = 24,
        LocalAttnChunkLength = 8,
        LshAttnChunkLength = 8,
        MaxPositionEmbeddings = 256,
        NumAttentionHeads = 3,
        VocabSize = 31,
        InitializerRange = 0.2,
    };

    private ReformerContext _context = null!;

    [OneTimeSetUp]
    public void Open() => _context = new ReformerContext();

    [OneTimeTearDown]
    public void Close() => _context.Dispose();

    [Test]
    public void SavedModel_Loaded_IsTheSameBitsAndBuckets()
    {
        using var directory = new TemporaryDirectory();
        using ReformerModel model = ReformerModel.Create(Small, _context, 1);
        TokenBatch batch = RandomBatch(2, 40, 31, 5);
        LossResult loss = model.Evaluate(batch);
        Assert.That(model.Config.NumBuckets, Is.EqualTo(new[] { 10 }), "2 max(1, 40 div 8)");
        model.Save(directory.Path);
        using ReformerModel loaded = ReformerModel.Load(directory.Path, _context);
        Assert.Multiple(() =>
        {
            Assert.That(loaded.Config.NumBuckets, Is.EqualTo(model.Config.NumBuckets));
            Assert.That(loaded.Evaluate(batch), Is.EqualTo(loss));
            Assert.That(
                loaded.Evaluate(RandomBatch(1, 250, 31, 5)).Count, Is.EqualTo(249), "another length, the same buckets");
            Assert.That(loaded.Config.NumBuckets, Is.EqualTo(new[] { 10 }));
        });
    }

    [Test]
    public void Initialisation_FollowsTheSeedAndTheConfiguredDeviations()
    {
        ReformerConfig config = Small with
        {
            InitializerRange = 0.02,
            AxialNormStd = 0.5,
            HiddenSize = 256,
            AxialPosEmbdsDim = [128, 128],
        };
        using ReformerModel one = ReformerModel.Create(config, _context, 1);
        using ReformerModel same = ReformerModel.Create(config, _context, 1);
        using ReformerModel other = ReformerModel.Create(config, _context, 2);
        Assert.Multiple(() =>
        {
            foreach ((Parameter a, Parameter b, Parameter c) in one.Parameters.Zip(same.Parameters, other.Parameters))
            {
                float[] values = a.Value.ToArray<float>();
                Assert.That(b.Value.ToArray<float>(), Is.EqualTo(values), a.Name);
                if (a.Name.EndsWith("bias", StringComparison.Ordinal))
                {
                    Assert.That(values, Has.All.Zero, a.Name);
                }
                else if (a.Name.Contains("layer_norm", StringComparison.Ordinal))
                {
                    Assert.That(values, Has.All.EqualTo(1), a.Name);
                }
                else
                {
                    double expected = a.Name.Contains("position", StringComparison.Ordinal) ? 0.5 : 0.02;
                    double found = Math.Sqrt(values.Average(value => (double)value * value));
                    Assert.That(
                        found, Is.EqualTo(expected).Within(6 / Math.Sqrt(2 * values.Length) * 100).Percent, a.Name);
                    Assert.That(c.Value.ToArray<float>(), Is.Not.EqualTo(values), a.Name);
                }
            }
        });
    }

    [Test]
    public void EveryLength_FromOneToThreeChunksAndOne_TrainsFinitely(
        [Values] ResidualMode residual, [Values] bool decoder)
    {
        ReformerConfig config = Small with
        {
            Residual = residual,
            IsDecoder = decoder,
            Task = decoder ? ReformerTask.CausalLanguageModel : ReformerTask.MaskedLanguageModel,
            AttnLayers = [AttentionKind.Lsh, AttentionKind.Full, AttentionKind.Local],
            LshPreset = decoder ? AttentionPreset.Strict : AttentionPreset.Trax,
            LshNumChunksAfter = decoder ? 0 : 1,
            LocalNumChunksAfter = decoder ? 0 : 1,
        };
        using ReformerModel model = ReformerModel.Create(config, _context, 3);
        for (int length = decoder ? 2 : 1; length <= 25; length++)
        {
            LossResult loss = model.ForwardBackward(
                RandomBatch(2, length, 31, 7), new RunOptions { Seed = 1, Dropout = true });
            Assert.That(loss.Loss, Is.GreaterThan(0).And.LessThan(10), $"length {length}");
        }

        Assert.That(
            model.Parameters.SelectMany(parameter => parameter.Gradient.ToArray<float>()),
            Has.All.Matches<float>(float.IsFinite));
    }

    [Test]
    public void ExactResidual_WithDropout_RecoversTheSameBits()
    {
        ReformerConfig config = Small with
        {
            HiddenDropoutProb = 0.1,
            LshAttentionProbsDropoutProb = 0.1,
            LocalAttentionProbsDropoutProb = 0.1,
            AttnLayers = [.. Enumerable.Repeat(AttentionKind.Lsh, 6), AttentionKind.Local],
        };
        using ReformerModel model = ReformerModel.Create(config, _context, 3);
        Assert.That(() => model.MeasureReconstruction(), Throws.InvalidOperationException);
        model.ForwardBackward(RandomBatch(2, 37, 31, 7), new RunOptions { Seed = 5, Step = 9, Dropout = true });
        Assert.That(model.MeasureReconstruction(), Is.EqualTo(new Reconstruction(true, 0)));
        Assert.That(() => model.MeasureReconstruction(), Throws.InvalidOperationException, "the memory has been used");

        using ReformerModel plain = ReformerModel.Create(config with { Residual = ResidualMode.Float }, _context, 3);
        plain.ForwardBackward(
            RandomBatch(2, 37, 31, 7),
            new RunOptions
            {
                Seed = 5,
                Step = 9,
                Dropout = true,
            }
        );
        Assert.That(
            plain.MeasureReconstruction().MaxAbs, Is.GreaterThan(0).And.LessThan(1e-3), "so the measure can fail");
    }

    [Test]
    public void ExactAndFloatResiduals_GiveTheSameGradientsUpToTheGrid()
    {
        using ReformerModel exact = ReformerModel.Create(Small with { ResidualGridExponent = -20 }, _context, 3);
        using ReformerModel plain = ReformerModel.Create(Small with { Residual = ResidualMode.Float }, _context, 3);
        TokenBatch batch = RandomBatch(2, 37, 31, 7);
        exact.ForwardBackward(batch, default);
        plain.ForwardBackward(batch, default);
        foreach ((Parameter a, Parameter b) in exact.Parameters.Zip(plain.Parameters))
        {
            float[] expected = b.Gradient.ToArray<float>();
            double scale = expected.Max(Math.Abs);
            double apart = a.Gradient.ToArray<float>().Zip(expected, (x, y) => Math.Abs(x - y)).Max();
            Assert.That(apart / scale, Is.LessThan(1e-3), a.Name);
        }
    }

    [Test]
    public void Gradients_OfTheLoss_AreItsSlopeAlongARandomDirection([Values] ReformerTask task)
    {
        // Full attention and a smooth activation: no hash or kink can flip between the two sides.
        ReformerConfig config = Small with
        {
            Residual = ResidualMode.Float,
            Task = task,
            IsDecoder = task == ReformerTask.CausalLanguageModel,
            LabelSmoothing = 0,
            AttnLayers = [AttentionKind.Full, AttentionKind.Local, AttentionKind.Full],
            FinalCombine =
                task == ReformerTask.MaskedLanguageModel ? StreamCombination.Mean : StreamCombination.Concatenate,
            NumLabels = 4,
        };
        using ReformerModel model = ReformerModel.Create(config, _context, 3);
        TokenBatch batch = RandomBatch(2, 21, task == ReformerTask.SequenceClassification ? 4 : 31, 7);
        model.ForwardBackward(batch, default);
        var random = new Random(11);
        float[][] values = [.. model.Parameters.Select(parameter => parameter.Value.ToArray<float>())];
        double[][] direction = [.. values.Select(v => v.Select(_ => (random.NextDouble() * 2) - 1).ToArray())];
        double slope = model
            .Parameters.Zip(direction, (p, d) => p.Gradient.ToArray<float>().Zip(d, (g, x) => g * x).Sum())
            .Sum();

        double At(double distance)
        {
            foreach ((Parameter parameter, int i) in model.Parameters.Select((parameter, i) => (parameter, i)))
            {
                parameter.Value.CopyFrom<float>(
                    values[i].Zip(direction[i], (v, d) => (float)(v + (distance * d))).ToArray());
            }

            return model.Evaluate(batch).Loss;
        }

        const double h = 2e-3;
        double measured = ((8 * (At(h) - At(-h))) - (At(2 * h) - At(-2 * h))) / (12 * h);
        Assert.That(slope, Is.EqualTo(measured).Within(0.2).Percent);
    }

    [Test]
    public void StrictCausalModel_TokenChanged_ChangesNothingBefore()
    {
        ReformerConfig config = Small with
        {
            AttnLayers = [AttentionKind.Lsh, AttentionKind.Local, AttentionKind.Lsh],
            NumBuckets = [4],
        };
        using ReformerModel model = ReformerModel.Create(config, _context, 3);
        const int length = 43;
        TokenBatch batch = RandomBatch(1, length, 31, 7);
        float[] before = model.Trace(batch).Logits;
        int changed = 0;
        for (int place = 0; place < length; place++)
        {
            int kept = batch.Ids[place];
            batch.Ids[place] = (kept + 1) % 31;
            float[] after = model.Trace(batch).Logits;
            batch.Ids[place] = kept;
            Assert.That(after[..(place * 31)], Is.EqualTo(before[..(place * 31)]), $"token {place}");
            changed += after.AsSpan(place * 31).SequenceEqual(before.AsSpan(place * 31)) ? 0 : 1;
        }

        Assert.That(changed, Is.EqualTo(length));
    }

    [Test]
    public void StrictCausalModel_ShorterSequence_GivesTheSamePrefix()
    {
        ReformerConfig config = Small with { AttnLayers = [AttentionKind.Lsh, AttentionKind.Lsh], NumBuckets = [4] };
        using ReformerModel model = ReformerModel.Create(config, _context, 3);
        TokenBatch batch = RandomBatch(1, 60, 31, 7);
        float[] whole = model.Trace(batch).Logits;
        for (int length = 9; length < 60; length += 7)
        {
            var shorter = new TokenBatch(1, length);
            batch.Ids[..length].CopyTo(shorter.Ids);
            var next = new float[31];
            model.NextTokenLogits(shorter, next);
            float[] expected = whole[((length - 1) * 31)..(length * 31)];
            Assert.That(next.Zip(expected, (a, b) => Math.Abs(a - b)).Max(), Is.LessThan(1e-4), $"length {length}");
        }
    }

    [Test]
    public void PaddingInTheMask_ContentChanged_ChangesNothingReal([Values("hf", "paper", "lucidrains")] string preset)
    {
        ReformerConfig config = Small with
        {
            LshPreset = AttentionPreset.FromName(preset),
            IsDecoder = false,
            Task = ReformerTask.MaskedLanguageModel,
            LshNumChunksAfter = 1,
            LocalNumChunksAfter = 1,
        };
        using ReformerModel model = ReformerModel.Create(config, _context, 3);
        TokenBatch batch = RandomBatch(2, 30, 31, 7);
        batch.HasMask = true;
        batch.Mask.Fill(1);
        int[] padding = [0, 13, 14, 29, 30 + 28, 30 + 29];
        foreach (int place in padding)
        {
            batch.Mask[place] = 0;
        }

        float[] before = model.Trace(batch).Logits;
        foreach (int place in padding)
        {
            batch.Ids[place] = (batch.Ids[place] + 5) % 31;
        }

        float[] after = model.Trace(batch).Logits;
        for (int row = 0; row < 60; row++)
        {
            if (!padding.Contains(row))
            {
                Assert.That(
                    after[(row * 31)..((row + 1) * 31)], Is.EqualTo(before[(row * 31)..((row + 1) * 31)]),
                    $"row {row}");
            }
        }
    }

    [Test]
    public void AccumulatedBatches_GiveTheGradientsOfOne()
    {
        using ReformerModel model = ReformerModel.Create(Small, _context, 3);
        TokenBatch both = RandomBatch(2, 40, 31, 7);
        model.ForwardBackward(both, default);
        float[][] expected = [.. model.Parameters.Select(parameter => parameter.Gradient.ToArray<float>())];
        model.ZeroGradients();
        LossResult sum = default;
        for (int b = 0; b < 2; b++)
        {
            var one = new TokenBatch(1, 40);
            both.Ids.Slice(b * 40, 40).CopyTo(one.Ids);
            both.Labels.Slice(b * 40, 40).CopyTo(one.Labels);
            sum = sum.Add(model.ForwardBackward(one, default, 0.5f));
        }

        Assert.That(sum.Count, Is.EqualTo(78));
        foreach ((Parameter parameter, float[] whole) in model.Parameters.Zip(expected))
        {
            double apart =
                parameter.Gradient.ToArray<float>().Zip(whole, (x, y) => Math.Abs(x - y)).Max()
                / Math.Max(1e-3, whole.Max(Math.Abs));
            Assert.That(apart, Is.LessThan(1e-3), parameter.Name);
        }
    }

    [Test]
    public void Evaluation_AfterTraining_LeavesGradientsAndIgnoresSmoothing()
    {
        using ReformerModel model = ReformerModel.Create(Small with { LabelSmoothing = 0.3 }, _context, 3);
        using ReformerModel sharp = ReformerModel.Create(Small, _context, 3);
        TokenBatch batch = RandomBatch(2, 40, 31, 7);
        LossResult smoothed = model.ForwardBackward(batch, default);
        float[] before = model.Parameters[0].Gradient.ToArray<float>();
        LossResult evaluated = model.Evaluate(batch);
        Assert.Multiple(() =>
        {
            Assert.That(model.Parameters[0].Gradient.ToArray<float>(), Is.EqualTo(before));
            Assert.That(evaluated, Is.EqualTo(sharp.Evaluate(batch)));
            Assert.That(smoothed.LossSum, Is.Not.EqualTo(evaluated.LossSum));
        });
    }

    [Test]
    public void LongBatch_OfSeveralHeadStretches_HasTheLossOfItsParts()
    {
        ReformerConfig config = Small with
        {
            AttnLayers = [AttentionKind.Local],
            Positions = PositionEncoding.None,
            LocalWrap = false,
        };
        using ReformerModel model = ReformerModel.Create(config, _context, 3);
        TokenBatch all = RandomBatch(3, 3000, 31, 7);
        LossResult whole = model.Evaluate(all);
        LossResult parts = default;
        for (int b = 0; b < 3; b++)
        {
            var one = new TokenBatch(1, 3000);
            all.Ids.Slice(b * 3000, 3000).CopyTo(one.Ids);
            all.Labels.Slice(b * 3000, 3000).CopyTo(one.Labels);
            parts = parts.Add(model.Evaluate(one));
        }

        Assert.Multiple(() =>
        {
            Assert.That(whole.Count, Is.EqualTo(3 * 2999));
            Assert.That(whole.LossSum, Is.EqualTo(parts.LossSum).Within(1e-5).Percent);
            Assert.That(whole.Correct, Is.EqualTo(parts.Correct));
        });
    }

    [Test]
    public void StreamOutOfRange_IsReportedWithItsPlace()
    {
        using ReformerModel model = ReformerModel.Create(Small with { ResidualGridExponent = -24 }, _context, 3);
        Parameter norm = model.Parameters.Single(parameter =>
            parameter.Name == "reformer.encoder.layers.1.feed_forward.output.dense.bias"
        );
        norm.Value.CopyFrom<float>(Enumerable.Range(0, 24).Select(i => i == 5 ? 100f : 0).ToArray());
        Parameter words = model.Parameters[0];
        words.Value.Zero();
        foreach (
            Parameter position in model.Parameters.Where(parameter =>
                parameter.Name.Contains("position", StringComparison.Ordinal)
            )
        )
        {
            position.Value.Zero();
        }

        ResidualRangeException error = Assert.Throws<ResidualRangeException>(() =>
            model.Evaluate(RandomBatch(2, 20, 31, 7))
        )!;
        Assert.Multiple(() =>
        {
            Assert.That(error.Layer, Is.EqualTo(1));
            Assert.That(error.Stream, Is.EqualTo(2));
            Assert.That(error.Message, Does.Contain("channel 5").And.Contain("±1,").And.Contain("residual: float"));
        });
    }

    [Test]
    public void ImpossibleInput_IsRefusedWithItsPlace()
    {
        using ReformerModel model = ReformerModel.Create(Small, _context, 3);
        TokenBatch Changed(Action<TokenBatch> change)
        {
            TokenBatch batch = RandomBatch(2, 20, 31, 7);
            change(batch);
            return batch;
        }

        Assert.Multiple(() =>
        {
            Assert.That(
                () => model.Evaluate(Changed(b => b.Ids[23] = 31)),
                Throws.ArgumentException.With.Message.Contains("example 1, token 3"));
            Assert.That(
                () => model.Evaluate(Changed(b => b.Ids[0] = -1)),
                Throws.ArgumentException.With.Message.Contains("found -1"));
            Assert.That(
                () => model.Evaluate(Changed(b => b.Labels[3] = 31)),
                Throws.ArgumentException.With.Message.Contains("labels"));
            Assert.That(
                () => model.Evaluate(Changed(b => b.Labels.Fill(-100))),
                Throws.ArgumentException.With.Message.Contains("at least one"));
            Assert.That(
                () => model.Evaluate(RandomBatch(1, 257, 31, 7)),
                Throws.ArgumentException.With.Message.Contains("256 positions"));
            Assert.That(
                () => model.Evaluate(RandomBatch(1, 20, 31, 7), new RunOptions { Rounds = 0 }),
                Throws.ArgumentException.With.Message.Contains("rounds"));
        });
    }

    [Test]
    public void DamagedCheckpoint_Loaded_NamesTheTensor()
    {
        using var directory = new TemporaryDirectory();
        using ReformerModel model = ReformerModel.Create(Small, _context, 1);
        model.Save(directory.Path);
        string weights = directory.File("model.safetensors");
        byte[] good = File.ReadAllBytes(weights);
        const string name = "reformer.encoder.layers.1.attention.self_attention.query_key.weight";

        void Refused(
            string expected, Action<List<SafetensorsItem>> change, Func<ReformerConfig, ReformerConfig>? config = null)
        {
            File.WriteAllBytes(weights, good);
            using (SafetensorsReader reader = SafetensorsReader.Open(weights))
            {
                List<SafetensorsItem> items =
                [
                    .. reader.Entries.Select(entry =>
                        SafetensorsItem.FromFloats(entry.Name, entry.Shape, reader.ReadFloats(entry.Name))
                    ),
                ];
                change(items);
                SafetensorsWriter.Write(weights, items);
            }

            long live = NativeRuntime.LiveObjects;
            Assert.That(
                () => ReformerModel.Load(directory.Path, _context, config),
                Throws.TypeOf<ReformerFormatException>().With.Message.StartsWith(weights).And.Message.Contains(expected)
            );
            Assert.That(NativeRuntime.LiveObjects, Is.EqualTo(live), "nothing stays allocated");
        }

        Assert.Multiple(() =>
        {
            foreach (float bad in (float[])[float.NaN, float.PositiveInfinity, float.NegativeInfinity])
            {
                var values = new float[24 * 24];
                values[77] = bad;
                Refused(
                    $"'{name}': expected finite values",
                    items =>
                        items[items.FindIndex(item => item.Name == name)] = SafetensorsItem.FromFloats(
                            name, [24, 24], values)
                );
            }

            Refused($"expected a tensor '{name}', found none", items => items.RemoveAll(item => item.Name == name));
            Refused(
                "'lm_head.decoder.bias': expected the values of 'lm_head.bias'",
                items =>
                    items[items.FindIndex(item => item.Name == "lm_head.decoder.bias")] = SafetensorsItem.FromFloats(
                        "lm_head.decoder.bias", [31], Enumerable.Repeat(1f, 31).ToArray())
            );
            Refused(
                "expected no tensor 'extra'",
                items => items.Add(SafetensorsItem.FromFloats("extra", [], new float[1])));
            Refused(
                "found I32",
                items =>
                    items[items.FindIndex(item => item.Name == name)] = SafetensorsItem.FromIntegers(
                        name, [24, 24], new int[24 * 24])
            );
            Refused(
                "expected the shape [30, 24] by the configuration, found [31, 24]", _ => { },
                config => config with { VocabSize = 30 });
        });

        // Hugging Face's constants and the second name of the bias are no parameters: a file may lack them.
        File.WriteAllBytes(weights, good);
        using (SafetensorsReader reader = SafetensorsReader.Open(weights))
        {
            SafetensorsWriter.Write(
                weights,
                [
                    .. reader
                        .Entries.Where(entry =>
                            !entry.Name.Contains("mask_value", StringComparison.Ordinal)
                            && entry.Name != "lm_head.decoder.bias"
                        )
                        .Select(entry =>
                            SafetensorsItem.FromFloats(entry.Name, entry.Shape, reader.ReadFloats(entry.Name))
                        ),
                ]
            );
        }

        using ReformerModel loaded = ReformerModel.Load(directory.Path, _context);
        Assert.That(
            loaded.Parameters[^1].Value.ToArray<float>(), Is.EqualTo(model.Parameters[^1].Value.ToArray<float>()));
    }

    [Test]
    public void PublishedShape_SavedLoadedAndTrained_Works()
    {
        using var directory = new TemporaryDirectory();
        ReformerConfig config = ReformerPresets.CrimeAndPunishment;
        using (ReformerModel model = ReformerModel.Create(config, _context, 3))
        {
            Assert.That(model.ParameterCount, Is.EqualTo(2_748_224));
            model.Save(directory.Path);
        }

        using ReformerModel loaded = ReformerModel.Load(directory.Path, _context);
        LossResult loss = loaded.ForwardBackward(RandomBatch(1, 500, 320, 1), new RunOptions { Dropout = true });
        Assert.Multiple(() =>
        {
            Assert.That(
                new FileInfo(directory.File("model.safetensors")).Length,
                Is.InRange(4 * 2_748_224, (4 * 2_748_224) + 20_000));
            Assert.That(loss.Loss, Is.EqualTo(Math.Log(320)).Within(10).Percent, "nothing is learnt yet");
        });
    }

    [Test]
    public void FullAttentionAndRounds_OfARun_OverrideTheConfiguration()
    {
        using ReformerModel model = ReformerModel.Create(Small, _context, 3);
        TokenBatch batch = RandomBatch(1, 64, 31, 7);
        double[] losses =
        [
            model.Evaluate(batch).Loss,
            model.Evaluate(batch, new RunOptions { Rounds = 5 }).Loss,
            model.Evaluate(batch, new RunOptions { FullAttention = true }).Loss,
            model.Evaluate(batch, new RunOptions { Seed = 1 }).Loss,
        ];
        Assert.Multiple(() =>
        {
            Assert.That(losses.Distinct().Count(), Is.EqualTo(4));
            Assert.That(
                model.Evaluate(batch, new RunOptions { FullAttention = true, Seed = 9 }).Loss, Is.EqualTo(losses[2]),
                "nothing random");
            Assert.That(model.Evaluate(batch).Loss, Is.EqualTo(losses[0]));
        });
    }

    [Test]
    public void HashSeed_Given_MakesRotationsIndependentOfTheRun()
    {
        using ReformerModel model = ReformerModel.Create(Small with { HashSeed = 4 }, _context, 3);
        TokenBatch batch = RandomBatch(1, 64, 31, 7);
        Assert.That(model.Evaluate(batch, new RunOptions { Seed = 1, Step = 2 }), Is.EqualTo(model.Evaluate(batch)));
    }

    [Test]
    public void Generator_SameSeed_DrawsTheSame_AndGreedyIsTheLikeliest()
    {
        using ReformerModel model = ReformerModel.Create(Small, _context, 3);
        using var generator = new Generator(model);
        int[] Draw(GenerationOptions options) => [.. generator.Generate([1, 2, 3], options)];

        int[] one = Draw(new GenerationOptions { Count = 20, Seed = 5 });
        int[] greedy = Draw(new GenerationOptions { Count = 12, Temperature = 0 });
        var logits = new float[31];
        var batch = new TokenBatch(1, 3);
        ((int[])[1, 2, 3]).CopyTo(batch.Ids);
        model.NextTokenLogits(batch, logits);
        Assert.Multiple(() =>
        {
            Assert.That(one, Has.Length.EqualTo(20).And.All.InRange(0, 30));
            Assert.That(Draw(new GenerationOptions { Count = 20, Seed = 5 }), Is.EqualTo(one));
            Assert.That(Draw(new GenerationOptions { Count = 20, Seed = 6 }), Is.Not.EqualTo(one));
            Assert.That(greedy[0], Is.EqualTo(Array.IndexOf(logits, logits.Max())));
            Assert.That(Draw(new GenerationOptions { Count = 12, TopK = 1 }), Is.EqualTo(greedy));
            Assert.That(
                Draw(
                    new GenerationOptions
                    {
                        Count = 12,
                        Temperature = 0,
                        EndToken = greedy[0],
                    }
                ),
                Has.Length.EqualTo(1)
            );
            Assert.That(
                Draw(
                    new GenerationOptions
                    {
                        Count = 300,
                        Seed = 1,
                        Context = 16,
                    }
                ),
                Has.Length.EqualTo(300),
                "past the last position"
            );
            Assert.That(() => generator.Generate([], new GenerationOptions()), Throws.ArgumentException);
        });
    }

    internal static TokenBatch RandomBatch(int batchSize, int length, int vocabulary, int seed)
    {
        var random = new Random(seed);
        var batch = new TokenBatch(batchSize, length);
        for (int i = 0; i < batch.TokenCount; i++)
        {
            batch.Ids[i] = random.Next(vocabulary);
        }

        batch.Ids.CopyTo(batch.Labels);
        return batch;
    }
}
