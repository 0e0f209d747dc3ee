using ReformerNative.Oracle;

namespace ReformerNative.Tests.OracleComparison;

/// <summary>Attention and its stages against the oracle.</summary>
public sealed class AttentionTests
{
    private static readonly AttentionOptions s_lsh = new()
    {
        Kind = AttentionKind.Lsh,
        SharedQk = true,
        KeyNorm = KeyNorm.Rms,
        Rounds = 2,
        Factors = [4],
        ChunkLength = 8,
        ChunksBefore = 1,
    };

    private static readonly AttentionOptions s_local = new()
    {
        Kind = AttentionKind.Local,
        KeyNorm = KeyNorm.None,
        ChunkLength = 8,
        ChunksBefore = 1,
    };

    private static readonly AttentionOptions s_full = new() { Kind = AttentionKind.Full };

    private static readonly Dictionary<string, AttentionOptions> s_kinds = new()
    {
        ["trax causal"] = s_lsh with { Causal = true, Wrap = true, RepeatChunks = true, PadBucket = true },
        ["trax both ways"] = s_lsh with
        {
            ChunksAfter = 1,
            Wrap = true,
            RepeatChunks = true,
            PadBucket = true,
            Dropout = 0.2f,
        },
        ["lucidrains"] = s_lsh with
        {
            Rounds = 3,
            Causal = true,
            Wrap = true,
            KeyNorm = KeyNorm.L2,
            LogCount = true,
            RepeatChunks = true,
        },
        ["paper"] = s_lsh with
        {
            Rounds = 4,
            Causal = true,
            Window = LshWindow.SameBucket,
            LogCount = true,
            PadBucket = true,
        },
        ["strict"] = s_lsh with
        {
            Rounds = 4,
            Causal = true,
            Window = LshWindow.Strict,
            LogCount = true,
            PadBucket = true,
            Dropout = 0.1f,
        },
        ["strict plain"] = s_lsh with { Rounds = 1, Causal = true, Window = LshWindow.Strict, ChunksBefore = 2 },
        ["local causal"] = s_local with { Causal = true, Wrap = true, RepeatChunks = true, Dropout = 0.3f },
        ["local both ways"] = s_local with { ChunksBefore = 2, ChunksAfter = 1, Wrap = true },
        ["local shared"] = s_local with { SharedQk = true, KeyNorm = KeyNorm.L2, Causal = true },
        ["full causal"] = s_full with { Causal = true, Dropout = 0.2f },
        ["full both ways"] = s_full with { LogitScale = 0.5 },
        ["full shared causal"] = s_full with { SharedQk = true, KeyNorm = KeyNorm.Rms, Causal = true, Dropout = 0.2f },
    };

    private static readonly Dictionary<string, Func<int, int, bool>> s_masks = new()
    {
        ["none"] = (_, _) => true,
        ["first"] = (t, _) => t != 0,
        ["second"] = (t, _) => t != 1,
        ["last"] = (t, n) => t != n - 1,
        ["left"] = (t, n) => t >= n / 3,
        ["right"] = (t, n) => t < n * 2 / 3,
        ["interior"] = (t, n) => t < n / 3 || t >= n * 2 / 3,
        ["alternating"] = (t, _) => t % 2 == 0,
        ["all but one"] = (t, n) => t == n / 2,
        ["all"] = (_, _) => false,
    };

    private static IEnumerable<string> Kinds => s_kinds.Keys;

    private static IEnumerable<string> Masks => s_masks.Keys;

    [Test]
    public void Attention_EveryLengthToThreeChunksAndOne_EqualsOracle([ValueSource(nameof(Kinds))] string kind)
    {
        for (int tokens = 1; tokens <= 25; tokens++)
        {
            new AttentionCase { Options = s_kinds[kind], Seed = tokens, Tokens = tokens }.Check();
        }
    }

    [Test]
    public void Attention_MaskAtEveryKindOfPosition_EqualsOracle(
        [ValueSource(nameof(Kinds))] string kind, [ValueSource(nameof(Masks))] string mask)
    {
        const int Tokens = 21;
        foreach (bool padBucket in new[] { false, true })
        {
            // The first example is masked, the second is whole.
            var masked = Enumerable.Range(0, 2 * Tokens).Select(i => i >= Tokens || s_masks[mask](i, Tokens)).ToArray();
            new AttentionCase
            {
                Options = s_kinds[kind] with { PadBucket = padBucket },
                Seed = 5,
                Tokens = Tokens,
                Mask = masked,
            }.Check();
        }
    }

    [TestCase(1, 1, 1, 1)]
    [TestCase(31, 31, 3, 8)]
    [TestCase(33, 33, 3, 32)]
    [TestCase(65, 31, 1, 64)]
    [TestCase(66, 64, 5, 33)]
    [TestCase(97, 16, 2, 32)]
    public void Attention_OddSizes_EqualsOracle(int tokens, int headSize, int heads, int chunk)
    {
        foreach (var options in s_kinds.Values)
        {
            new AttentionCase
            {
                Options = options with { ChunkLength = chunk },
                Seed = tokens,
                Batch = 2,
                Tokens = tokens,
                Heads = heads,
                HeadSize = headSize,
            }.Check();
        }
    }

    [Test]
    public void Attention_ChunksBeforeAndAfter_EqualsOracle([Range(0, 3)] int before, [Range(0, 3)] int after)
    {
        foreach (bool wrap in new[] { false, true })
        {
            foreach (bool repeat in new[] { false, true })
            {
                foreach (bool isLsh in new[] { false, true })
                {
                    var options = (isLsh ? s_lsh : s_local) with
                    {
                        ChunkLength = 4,
                        ChunksBefore = before,
                        ChunksAfter = after,
                        Wrap = wrap,
                        RepeatChunks = repeat,
                        LogCount = isLsh,
                        Dropout = 0.2f,
                    };
                    foreach (int tokens in new[] { 3, 7, 23 })
                    {
                        new AttentionCase { Options = options, Seed = tokens, Tokens = tokens }.Check();
                    }
                }
            }
        }
    }

    [Test]
    public void Attention_RotationScopesHeadGroupsAndFactors_EqualsOracle(
        [Values(1, 3, 6)] int sets, [Values(0, 1, 2, 3)] int headGroup)
    {
        foreach (int[] factors in new int[][] { [2], [6], [128], [4, 2], [2, 2, 2], [2, 4, 2, 2, 2, 2, 2, 2] })
        {
            var options = s_kinds["paper"] with { Factors = factors };
            new AttentionCase
            {
                Options = options,
                Seed = sets,
                Heads = 3,
                RotationSets = sets,
                HeadGroup = headGroup,
            }.Check();
        }
    }

    [Test]
    public void Attention_LongPadding_EqualsOracle([ValueSource(nameof(Kinds))] string kind)
    {
        if (s_kinds[kind].Kind != AttentionKind.Full)
        {
            foreach (int padded in new[] { 24, 48, 80 })
            {
                new AttentionCase
                {
                    Options = s_kinds[kind] with { PaddedLength = padded },
                    Seed = padded,
                    Tokens = 19,
                }.Check();
            }
        }
    }

    /// <summary>Everything drawn at random; the number is the whole reproduction.</summary>
    [Test]
    public void Attention_RandomOptions_EqualsOracle([Range(1, 200)] int seed)
    {
        var random = new Random(seed);
        bool Coin() => random.Next(2) == 0;
        var kind = (AttentionKind)random.Next(3);
        bool isLsh = kind == AttentionKind.Lsh;
        var window = isLsh ? (LshWindow)random.Next(3) : LshWindow.Slots;
        int chunk = random.Next(1, 20),
            tokens = random.Next(1, 70),
            batch = random.Next(1, 4),
            heads = random.Next(1, 4);
        var options = new AttentionOptions
        {
            Kind = kind,
            SharedQk = isLsh || Coin(),
            Causal = window == LshWindow.Strict || Coin(),
            Window = window,
            Wrap = window != LshWindow.Strict && Coin(),
            RepeatChunks = window != LshWindow.Strict && Coin(),
            LogCount = isLsh && Coin(),
            KeyNorm = (KeyNorm)random.Next(3),
            Rounds = isLsh ? random.Next(1, 5) : 1,
            Factors = Coin() ? [2 * random.Next(1, 5)] : [2 * random.Next(1, 4), 2 * random.Next(1, 4)],
            PadBucket = isLsh && Coin(),
            ChunksBefore = window == LshWindow.Strict ? random.Next(1, 3) : random.Next(3),
            ChunksAfter = window == LshWindow.Strict ? 0 : random.Next(3),
            LogitScale = Coin() ? 0 : 0.3f,
            Dropout = Coin() ? 0 : 0.25f,
            ChunkLength = chunk,
            PaddedLength =
                kind == AttentionKind.Full || Coin() ? 0 : ((tokens + chunk - 1) / chunk + random.Next(3)) * chunk,
        };
        new AttentionCase
        {
            Options = options,
            Seed = seed,
            Batch = batch,
            Tokens = tokens,
            Heads = heads,
            HeadSize = random.Next(1, 40),
            HeadGroup = random.Next(heads + 1),
            Threads = random.Next(1, 4),
            RotationSets = random.Next(3) switch { 0 => 1, 1 => heads, _ => batch * heads },
            Mask = Coin() ? null : random.Mask(batch * tokens),
        }.Check();
    }
}
