namespace ReformerNative.Oracle.Tests;

public sealed class AttentionTests
{
    private static readonly Randomness s_randomness = new(5, 17, 3);

    private static IEnumerable<TestCaseData> Variants()
    {
        var number = 0;
        TestCaseData Case(string name, int tokens, AttentionOptions options, bool masked = false) =>
            new TestCaseData(++number, tokens, options, masked).SetArgDisplayNames(name);

        var lsh = new AttentionOptions
        {
            Kind = AttentionKind.Lsh,
            SharedQk = true,
            KeyNorm = KeyNorm.Rms,
            Factors = [4],
            ChunkLength = 4,
            ChunksBefore = 1,
        };
        foreach (var rounds in new[] { 1, 2, 4 })
        {
            foreach (var window in Enum.GetValues<LshWindow>())
            {
                foreach (var logCount in new[] { false, true })
                {
                    var options = lsh with
                    {
                        Rounds = rounds,
                        Window = window,
                        LogCount = logCount,
                        Causal = true,
                        Dropout = 0.2f,
                    };
                    yield return Case(
                        $"lsh R{rounds} {window} count={logCount} causal",
                        17,
                        options with
                        {
                            Wrap = rounds == 2,
                        }
                    );
                    yield return Case(
                        $"lsh R{rounds} {window} count={logCount} mask",
                        13,
                        options with
                        {
                            Causal = window == LshWindow.Strict,
                            PadBucket = rounds > 1,
                            KeyNorm = KeyNorm.L2,
                            Wrap = rounds != 2,
                            ChunksAfter = window == LshWindow.Strict ? 0 : 1,
                        },
                        masked: true
                    );
                }
            }
        }

        foreach (var (before, after) in new[] { (0, 0), (0, 1), (2, 0), (1, 1), (2, 3) })
        {
            var around = lsh with { Rounds = 2, ChunksBefore = before, ChunksAfter = after, Wrap = true };
            yield return Case($"lsh before {before} after {after}", 19, around with { Dropout = 0.1f });
            yield return Case(
                $"lsh before {before} after {after} repeating",
                7,
                around with
                {
                    RepeatChunks = true,
                    LogCount = true,
                    LogitScale = 1.5,
                    KeyNorm = KeyNorm.None,
                }
            );
            foreach (var shared in new[] { false, true })
            {
                var local = new AttentionOptions
                {
                    Kind = AttentionKind.Local,
                    SharedQk = shared,
                    ChunkLength = 5,
                    ChunksBefore = before,
                    ChunksAfter = after,
                    Wrap = shared,
                    RepeatChunks = after == 1,
                    Dropout = 0.3f,
                    KeyNorm = shared ? KeyNorm.L2 : KeyNorm.None,
                };
                yield return Case(
                    $"local shared={shared} before {before} after {after}", 13, local, masked: after == 1);
                yield return Case(
                    $"local shared={shared} before {before} after {after} causal",
                    13,
                    local with
                    {
                        Causal = true,
                        PaddedLength = 20,
                    }
                );
            }
        }

        yield return Case(
            "lsh factors, long padding",
            9,
            lsh with
            {
                Rounds = 2,
                Factors = [2, 4],
                PaddedLength = 20,
                PadBucket = true,
                Wrap = true,
            },
            masked: true
        );
        foreach (var norm in Enum.GetValues<KeyNorm>())
        {
            var full = new AttentionOptions
            {
                Kind = AttentionKind.Full,
                KeyNorm = norm,
                Dropout = 0.25f,
            };
            yield return Case($"full {norm}", 9, full);
            yield return Case($"full {norm} causal mask", 11, full with { Causal = true }, masked: true);
            yield return Case($"full {norm} shared", 1, full with { SharedQk = true });
            yield return Case(
                $"full {norm} shared causal mask",
                11,
                full with
                {
                    SharedQk = true,
                    Causal = true,
                },
                masked: true
            );
        }
    }

    [TestCaseSource(nameof(Variants))]
    public void Backward_EveryVariant_EqualsFiniteDifferences(
        int seed, int tokens, AttentionOptions options, bool masked)
    {
        var random = new Random(seed);
        var input = Inputs(random, new(2, tokens, 2, 3), options, masked);
        var upstream = random.Normals(input.Shape.Size);
        var gradients = Attention.Backward(options, input, s_randomness, upstream);
        var tensors = new List<(string, double[], double[])>
        {
            ("q", input.Q, gradients.Q),
            ("v", input.V, gradients.V),
        };
        if (input.K is not null)
        {
            tensors.Add(("k", input.K, gradients.K!));
        }

        new FiniteDifferences(random).Check(
            () => Dot(Attention.Forward(options, input, s_randomness).Out, upstream), [.. tensors]);
    }

    [TestCaseSource(nameof(Variants))]
    public void Stages_EveryLshVariant_EqualTheWhole(int seed, int tokens, AttentionOptions options, bool masked)
    {
        if (options.Kind != AttentionKind.Lsh)
        {
            Assert.Pass("only LSH attention has stages");
        }

        var random = new Random(seed);
        var input = Inputs(random, new(2, tokens, 2, 3), options, masked);
        var upstream = random.Normals(input.Shape.Size);
        var each = Attention.Attend(options, input, s_randomness);
        var whole = Attention.Forward(options, input, s_randomness);
        var combined = Attention.Combine(input.Shape, options.Rounds, each);
        Assert.That(combined.Out, Is.EqualTo(whole.Out).Within(1e-13));
        Assert.That(combined.LogSumExp, Is.EqualTo(whole.LogSumExp).Within(1e-13));

        var gradEach = Attention.CombineBackward(input.Shape, options.Rounds, each, upstream);
        var staged = Attention.AttendBackward(options, input, s_randomness, gradEach.Out, gradEach.LogSumExp);
        var gradients = Attention.Backward(options, input, s_randomness, upstream);
        Assert.That(staged.Q, Is.EqualTo(gradients.Q).Within(1e-13));
        Assert.That(staged.V, Is.EqualTo(gradients.V).Within(1e-13));
    }

    [Test]
    public void CombineBackward_FiniteRounds_EqualsFiniteDifferences()
    {
        var random = new Random(1);
        var shape = new AttentionShape(2, 5, 2, 3);
        var each = new RoundsResult(random.Normals(4 * shape.Size), random.Normals(4 * 2 * 5 * 2));
        var upstream = random.Normals(shape.Size);
        var gradients = Attention.CombineBackward(shape, 4, each, upstream);
        new FiniteDifferences(random).Check(
            () => Dot(Attention.Combine(shape, 4, each).Out, upstream), ("out", each.Out, gradients.Out),
            ("log_sum_exp", each.LogSumExp, gradients.LogSumExp));
    }

    [Test]
    public void Forward_TokenAlone_IsItsOwnValueWithoutDropout()
    {
        var options = new AttentionOptions
        {
            Kind = AttentionKind.Lsh,
            SharedQk = true,
            Causal = true,
            Rounds = 3,
            ChunkLength = 4,
            ChunksBefore = 1,
            Dropout = 0.5f,
        };
        var random = new Random(2);
        var input = Inputs(random, new(2, 9, 2, 3), options, masked: false);
        var result = Attention.Forward(options, input, s_randomness);
        for (var b = 0; b < 2; b++)
        {
            for (var h = 0; h < 2; h++)
            {
                var at = input.Shape.Offset(b, 0, h);
                Assert.That(result.Out[at..(at + 3)], Is.EqualTo(input.V[at..(at + 3)]));
                Assert.That(result.LogSumExp[(b * 2 + h) * 9], Is.EqualTo(double.NegativeInfinity));
            }
        }
    }

    [Test]
    public void Forward_MaskedQuery_IsZeroAndGivesNoGradient()
    {
        var random = new Random(3);
        var shape = new AttentionShape(1, 6, 1, 3);
        bool[] mask = [true, true, true, true, true, false];
        foreach (var shared in new[] { false, true })
        {
            var options = new AttentionOptions { Kind = AttentionKind.Full, SharedQk = shared };
            var input = new AttentionInput(
                shape, random.Normals(18), shared ? null : random.Normals(18), random.Normals(18), mask, null);
            var result = Attention.Forward(options, input, s_randomness);
            double[] upstream = [.. new double[15], 1, 2, 3];
            var gradients = Attention.Backward(options, input, s_randomness, upstream);
            Assert.That(result.Out[15..], Is.All.Zero);
            Assert.That(result.LogSumExp[5], Is.EqualTo(double.NegativeInfinity));
            Assert.That(gradients.Q.Concat(gradients.V).Concat(gradients.K ?? []), Is.All.Zero);
        }
    }

    /// <summary>One chunk per round holds everything: each pair counts once per round, which changes nothing.</summary>
    [TestCase(1, false)]
    [TestCase(3, false)]
    [TestCase(3, true)]
    public void Forward_WindowCoversAll_EqualsFullAttention(int rounds, bool logCount)
    {
        var random = new Random(4);
        var lsh = new AttentionOptions
        {
            Kind = AttentionKind.Lsh,
            SharedQk = true,
            Causal = true,
            KeyNorm = KeyNorm.Rms,
            Rounds = rounds,
            LogCount = logCount,
            ChunkLength = 8,
        };
        var input = Inputs(random, new(2, 7, 2, 3), lsh, masked: true);
        var dense = Attention.Forward(
            lsh with
            {
                Kind = AttentionKind.Full,
            },
            input with
            {
                Buckets = null,
            },
            s_randomness
        );
        var result = Attention.Forward(lsh, input, s_randomness);
        Assert.That(result.Out, Is.EqualTo(dense.Out).Within(1e-13));

        // The log-sum-exp counts each pair once per round, unless the count is divided out.
        var counted = dense.LogSumExp.Select(l => l + (logCount ? 0 : Math.Log(rounds)));
        Assert.That(result.LogSumExp, Is.EqualTo(counted).Within(1e-13));
    }

    /// <summary>
    /// All scores are equal and values are one-hot, so outputs are the weights: they show who sees whom, and each
    /// pair's dropout.
    /// </summary>
    [TestCase(AttentionKind.Lsh, LshWindow.Slots)]
    [TestCase(AttentionKind.Lsh, LshWindow.Strict)]
    [TestCase(AttentionKind.Local, LshWindow.Slots)]
    [TestCase(AttentionKind.Full, LshWindow.Slots)]
    public void Forward_OneBucket_HasTheDocumentedKeysAndDropoutElements(AttentionKind kind, LshWindow window)
    {
        const int Tokens = 11,
            Chunk = 3,
            Before = 2,
            Padded = 12,
            Width = Chunk * (1 + Before);
        var rounds = kind == AttentionKind.Lsh ? 2 : 1;
        var options = new AttentionOptions
        {
            Kind = kind,
            SharedQk = kind == AttentionKind.Lsh,
            Causal = true,
            Rounds = rounds,
            Window = window,
            ChunkLength = Chunk,
            ChunksBefore = Before,
            Dropout = 0.4f,
        };
        var shape = new AttentionShape(2, Tokens, 3, Tokens);
        double[] zeros = new double[shape.Size],
            v = new double[shape.Size];
        for (var i = 0; i < v.Length; i++)
        {
            v[i] = i % Tokens == i / Tokens / 3 % Tokens ? 1 : 0;
        }

        var input = new AttentionInput(
            shape, zeros, options.SharedQk ? null : zeros, v, null, new int[2 * 3 * 2 * Tokens]);
        var result = Attention.Forward(options, input, s_randomness);
        for (var index = 0; index < shape.Size; index++)
        {
            var (j, h, i, b) = (
                index % Tokens, index / Tokens % 3, index / Tokens / 3 % Tokens, index / Tokens / 3 / Tokens);
            var keys = Enumerable
                .Range(0, i + 1)
                .Where(key =>
                    kind switch
                    {
                        AttentionKind.Full => true,
                        AttentionKind.Local => key / Chunk >= i / Chunk - Before,
                        _ => key != i
                            && (
                                window == LshWindow.Strict
                                    ? key >= i - Before * Chunk
                                    : key / Chunk >= i / Chunk - Before
                            ),
                    }
                )
                .ToList();
            var expected =
                keys.Count == 0 ? (i == j ? 1 : 0)
                : !keys.Contains(j) ? 0
                : Enumerable
                    .Range(0, rounds)
                    .Sum(r =>
                    {
                        var head = b * 3 + h;
                        var element =
                            kind == AttentionKind.Full
                                ? (head * Tokens + i) * Tokens + j
                                : ((head * rounds + r) * Padded + i) * Width
                                    + (
                                        window == LshWindow.Strict
                                            ? i - j - 1
                                            : (j / Chunk - i / Chunk + Before) * Chunk + j % Chunk
                                    );
                        return Philox.DropoutMultiplier(s_randomness, Site.AttentionProbabilities, element, 0.4f)
                            / keys.Count
                            / rounds;
                    });
            Assert.That(
                result.Out[index], Is.EqualTo(expected).Within(1e-14), $"example {b}, head {h}, query {i}, key {j}");
        }
    }

    [TestCase(AttentionKind.Lsh, 0)]
    [TestCase(AttentionKind.Lsh, 16)]
    [TestCase(AttentionKind.Local, 0)]
    [TestCase(AttentionKind.Local, 16)]
    public void Forward_ImaginedPadding_EqualsMaskedTokensBehindTheSequence(AttentionKind kind, int paddedLength)
    {
        var random = new Random(5);
        var options = new AttentionOptions
        {
            Kind = kind,
            SharedQk = kind == AttentionKind.Lsh,
            Rounds = kind == AttentionKind.Lsh ? 3 : 1,
            Factors = [4],
            ChunkLength = 4,
            ChunksBefore = 1,
            ChunksAfter = 1,
            Wrap = true,
            PadBucket = true,
            PaddedLength = paddedLength,
        };
        var padded = paddedLength == 0 ? 12 : paddedLength;
        var shape = new AttentionShape(1, padded, 2, 3);
        double[] q = random.Normals(shape.Size),
            k = random.Normals(shape.Size),
            v = random.Normals(shape.Size);
        var rotations = random.Normals(3 * 3 * 2);
        AttentionResult Run(int tokens, bool[]? mask)
        {
            var cut = shape with { Tokens = tokens };
            double[] qt = q[..(tokens * 6)],
                kt = k[..(tokens * 6)],
                vt = v[..(tokens * 6)];
            var buckets = kind == AttentionKind.Lsh ? Lsh.Hash(options, cut, qt, mask, rotations) : null;
            return Attention.Forward(
                options, new(cut, qt, options.SharedQk ? null : kt, vt, mask, buckets), s_randomness);
        }

        var explicitly = Run(padded, [.. Enumerable.Range(0, padded).Select(t => t < 9)]);
        Assert.That(Run(9, null).Out, Is.EqualTo(explicitly.Out[..(9 * 6)]));
    }

    [TestCase(false)]
    [TestCase(true)]
    public void Forward_StrictWindow_NeverSeesTheFuture(bool logCount)
    {
        var options = new AttentionOptions
        {
            Kind = AttentionKind.Lsh,
            SharedQk = true,
            Causal = true,
            KeyNorm = KeyNorm.Rms,
            Rounds = 4,
            Window = LshWindow.Strict,
            LogCount = logCount,
            Factors = [4],
            ChunkLength = 4,
            ChunksBefore = 1,
            Wrap = true,
        };
        var (broken, moved) = CountBrokenPasts(options);
        Assert.That(broken, Is.Zero);
        Assert.That(moved, Is.GreaterThan(500));

        // The test can fail: the other windows let the future in.
        Assert.That(CountBrokenPasts(options with { Window = LshWindow.Slots }).Broken, Is.GreaterThan(0));
    }

    /// <summary>
    /// Changes each token in turn, rehashing: outputs before it that moved, and outputs from it on that moved.
    /// </summary>
    private static (int Broken, int Moved) CountBrokenPasts(AttentionOptions options)
    {
        var random = new Random(6);
        var shape = new AttentionShape(1, 33, 2, 3);
        double[] q = random.Normals(shape.Size),
            v = random.Normals(shape.Size);
        var rotations = random.Normals(3 * options.Rounds * options.Factors.Sum() / 2);
        double[] Output() =>
            Attention
                .Forward(
                    options, new(shape, q, null, v, null, Lsh.Hash(options, shape, q, null, rotations)), s_randomness)
                .Out;
        var reference = Output();
        int broken = 0,
            moved = 0;
        for (var t = 0; t < shape.Tokens; t++)
        {
            double[] oldQ = [.. q],
                oldV = [.. v];
            random.Normals(6, 3).CopyTo(q, shape.Offset(0, t, 0));
            random.Normals(6, 3).CopyTo(v, shape.Offset(0, t, 0));
            var output = Output();
            broken += Enumerable.Range(0, t * 6).Count(i => output[i] != reference[i]);
            moved += Enumerable.Range(t * 6, shape.Size - t * 6).Count(i => output[i] != reference[i]);
            oldQ.CopyTo(q, 0);
            oldV.CopyTo(v, 0);
        }

        return (broken, moved);
    }

    private static AttentionInput Inputs(Random random, AttentionShape shape, AttentionOptions options, bool masked)
    {
        double[] q = random.Normals(shape.Size),
            v = random.Normals(shape.Size);
        var k = options.SharedQk ? null : random.Normals(shape.Size);
        var mask = masked ? random.Mask(shape.Batch * shape.Tokens) : null;
        var rotations = random.Normals(shape.Heads * shape.HeadSize * options.Rounds * options.Factors.Sum() / 2);
        return new(
            shape, q, k, v, mask,
            options.Kind == AttentionKind.Lsh ? Lsh.Hash(options, shape, q, mask, rotations) : null);
    }

    private static double Dot(double[] a, double[] b) => a.Zip(b, (x, y) => x * y).Sum();
}
