using System.Text;
using ReformerNative.Data;

namespace ReformerNative.Tests.Data;

public sealed class DataTests
{
    /// <summary>
    /// Known answers of the generator's authors: counter and key of zeros, of ones, and digits of pi.
    /// </summary>
    [TestCase(0u, 0u, 0u, 0u, 0ul, "6627e8d5 e169c58d bc57ac4c 9b00dbd8")]
    [TestCase(~0u, ~0u, ~0u, ~0u, ~0ul, "408f276d 41c83b0e a20bc7c6 6d5451fd")]
    [TestCase(
        0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0x299f31d0a4093822ul,
        "d16cfe09 94fdcceb 5001e420 24126ea1")]
    public void Philox_KnownCounters_GivesKnownWords(uint c0, uint c1, uint c2, uint c3, ulong key, string words)
    {
        (uint a, uint b, uint c, uint d) = CounterRandom.Philox(c0, c1, c2, c3, key);
        Assert.That($"{a:x8} {b:x8} {c:x8} {d:x8}", Is.EqualTo(words));
    }

    [Test]
    public void Below_ManyDraws_CoversTheRangeEvenly()
    {
        var counts = new int[7];
        for (uint i = 0; i < 70_000; i++)
        {
            counts[CounterRandom.Below(7, 3, 1, 2, i)]++;
        }

        // 10,000 each with a standard deviation of 93: six of them.
        Assert.That(counts, Has.All.InRange(9_440, 10_560));
    }

    [TestCase(4)]
    [TestCase(128)]
    [TestCase(1024)]
    public void DuplicationTask_AnyEvenLength_IsZeroWordTwiceAndLabelsTheSecond(int length)
    {
        var task = new DuplicationTask();
        var batch = new TokenBatch(3, length) { HasMask = true };
        task.Fill(batch, DataSplit.Train, 5, 9);
        int half = length / 2;
        for (int b = 0; b < 3; b++)
        {
            int[] ids = batch.Ids.Slice(b * length, length).ToArray();
            int[] labels = batch.Labels.Slice(b * length, length).ToArray();
            Assert.Multiple(() =>
            {
                Assert.That(ids[0], Is.Zero);
                Assert.That(ids[..half], Is.EqualTo(ids[half..]));
                Assert.That(ids[1..half], Has.All.InRange(1, 127));
                Assert.That(labels[..(half + 1)], Has.All.EqualTo(TokenBatch.IgnoredLabel));
                Assert.That(labels[(half + 1)..], Is.EqualTo(ids[(half + 1)..]));
            });
        }

        Assert.That(batch.HasMask, Is.False);
    }

    [Test]
    public void DuplicationTask_OddLength_IsRefused() =>
        Assert.That(
            () => new DuplicationTask().Fill(new TokenBatch(1, 7), DataSplit.Train, 0, 0),
            Throws.ArgumentException.With.Message.Contains("found 7"));

    [Test]
    public void Sources_SameArguments_GiveTheSameBatch_OthersGiveOthers()
    {
        using var directory = new TemporaryDirectory();
        File.WriteAllBytes(directory.File("a"), [.. Enumerable.Range(0, 5000).Select(i => (byte)(i * i))]);
        using TextFiles text = TextFiles.Open([directory.Path]);
        foreach (IBatchSource source in (IBatchSource[])[text, new DuplicationTask()])
        {
            int[] Ids(DataSplit split, ulong seed, long index)
            {
                var batch = new TokenBatch(2, 32);
                source.Fill(batch, split, seed, index);
                Assert.That(batch.Ids.ToArray(), Has.All.InRange(0, source.VocabularySize - 1));
                return batch.Ids.ToArray();
            }

            int[] one = Ids(DataSplit.Train, 1, 2);
            Assert.Multiple(() =>
            {
                Assert.That(Ids(DataSplit.Train, 1, 2), Is.EqualTo(one));
                Assert.That(Ids(DataSplit.Train, 1, 3), Is.Not.EqualTo(one));
                Assert.That(Ids(DataSplit.Train, 2, 2), Is.Not.EqualTo(one));
                Assert.That(Ids(DataSplit.HeldOut, 1, 2), Is.Not.EqualTo(one));
                Assert.That(Ids(DataSplit.Train, 1, 2 + (1L << 32)), Is.Not.EqualTo(one));
                Assert.That(one[..32], Is.Not.EqualTo(one[32..]), "examples of a batch differ");
            });
        }
    }

    [Test]
    public void TextFiles_OfAFolder_AreHeadsThenTails_WithEndsOfText()
    {
        using var directory = new TemporaryDirectory();
        Directory.CreateDirectory(directory.File("b"));
        File.WriteAllText(directory.File("b/z.txt"), "0123456789");
        File.WriteAllText(directory.File("a.txt"), "abcde");
        File.WriteAllText(directory.File("empty.txt"), "");
        File.WriteAllText(directory.File("other.bin"), "never");
        using TextFiles text = TextFiles.Open([directory.Path], "*.txt", 0.2);
        Assert.Multiple(() =>
        {
            Assert.That(text.FileCount, Is.EqualTo(2));
            Assert.That(text.ByteCount, Is.EqualTo(15));
            Assert.That(Show(text, DataSplit.Train), Is.EqualTo("abcd|01234567|"));
            Assert.That(Show(text, DataSplit.HeldOut), Is.EqualTo("e|89|"));
        });
    }

    [Test]
    public void TextFiles_EveryStretch_IsThatOfTheWhole()
    {
        using var directory = new TemporaryDirectory();
        var random = new Random(4);
        for (int file = 0; file < 5; file++)
        {
            byte[] bytes = new byte[random.Next(1, 40)];
            random.NextBytes(bytes);
            File.WriteAllBytes(directory.File($"{file}"), bytes);
        }

        using TextFiles text = TextFiles.Open([directory.Path], heldOutFraction: 0);
        int[] whole = Ids(text, 0, (int)text.TokenCount(DataSplit.Train));
        for (int start = 0; start < whole.Length; start++)
        {
            for (int count = 0; count <= whole.Length - start; count++)
            {
                Assert.That(
                    Ids(text, start, count), Is.EqualTo(whole[start..(start + count)]), $"{count} from {start}");
            }
        }

        static int[] Ids(TextFiles text, int start, int count)
        {
            var ids = new int[count];
            text.Read(DataSplit.Train, start, ids);
            return ids;
        }
    }

    [Test]
    public void TextFiles_LargerThanABuffer_AreReadWhole()
    {
        using var directory = new TemporaryDirectory();
        byte[] bytes = new byte[200_000];
        new Random(1).NextBytes(bytes);
        File.WriteAllBytes(directory.File("a"), bytes);
        using TextFiles text = TextFiles.Open([directory.File("a")], heldOutFraction: 0);
        var ids = new int[bytes.Length];
        text.Read(DataSplit.Train, 0, ids);
        Assert.That(ByteVocabulary.Decode(ids).AsSpan().SequenceEqual(bytes), Is.True);
    }

    [Test]
    public void TextFiles_ThatDoNotServe_AreRefused()
    {
        using var directory = new TemporaryDirectory();
        File.WriteAllText(directory.File("a"), "abc");
        using TextFiles text = TextFiles.Open([directory.Path], heldOutFraction: 0);
        Assert.Multiple(() =>
        {
            Assert.That(
                () => TextFiles.Open([directory.File("no")]),
                Throws.TypeOf<FileNotFoundException>().With.Message.Contains("no"));
            Assert.That(
                () => TextFiles.Open([directory.Path], "*.xml"),
                Throws.TypeOf<FileNotFoundException>().With.Message.Contains("*.xml"));
            Assert.That(
                () => TextFiles.Open([directory.Path], heldOutFraction: 1),
                Throws.TypeOf<ArgumentOutOfRangeException>());
            Assert.That(
                () => text.Fill(new TokenBatch(1, 5), DataSplit.Train, 0, 0),
                Throws.ArgumentException.With.Message.Contains("found 5"));
            Assert.That(() => text.Fill(new TokenBatch(1, 4), DataSplit.Train, 0, 0), Throws.Nothing);
            Assert.That(() => text.Fill(new TokenBatch(1, 4), DataSplit.HeldOut, 0, 0), Throws.ArgumentException);
        });
    }

    [Test]
    public void ByteVocabulary_AllBytes_GoThereAndBack()
    {
        byte[] bytes = [.. Enumerable.Range(0, 256).Select(i => (byte)i)];
        var ids = new int[258];
        ByteVocabulary.Encode(bytes, ids.AsSpan(1));
        ids[^1] = ByteVocabulary.EndOfText;
        Assert.Multiple(() =>
        {
            Assert.That(ids[1..^1], Is.EqualTo(Enumerable.Range(2, 256)));
            Assert.That(ByteVocabulary.Decode(ids), Is.EqualTo(bytes));
            Assert.That(ByteVocabulary.Encode("é"), Is.EqualTo(new[] { 0xC3 + 2, 0xA9 + 2 }));
        });
    }

    private static string Show(TextFiles text, DataSplit split)
    {
        var ids = new int[text.TokenCount(split)];
        text.Read(split, 0, ids);
        return string.Concat(
            ids.Select(id => id == ByteVocabulary.EndOfText ? "|" : Encoding.ASCII.GetString([(byte)(id - 2)])));
    }
}
