using System.Buffers.Binary;
using System.Text;
using ReformerNative.Checkpoints;

namespace ReformerNative.Tests.Checkpoints;

public sealed class SafetensorsTests
{
    private static readonly float[] Values = [1, -2.5f, float.Epsilon, 3e38f, 0, -0.0f];

    [Test]
    public void WrittenFile_Read_GivesTheSameTensors()
    {
        using var directory = new TemporaryDirectory();
        string path = directory.File("a.safetensors");
        SafetensorsWriter.Write(
            path,
            [
                SafetensorsItem.FromFloats("b", [2, 3], Values),
                SafetensorsItem.FromIntegers("ä\"\n", [], new[] { -7 }),
                SafetensorsItem.FromFloats("none", [4, 0], Array.Empty<float>()),
            ],
            new Dictionary<string, string> { ["format"] = "pt" });
        using SafetensorsReader reader = SafetensorsReader.Open(path);
        Assert.Multiple(() =>
        {
            Assert.That(reader.Entries.Select(entry => entry.Name), Is.EqualTo(new[] { "b", "ä\"\n", "none" }));
            Assert.That(reader.Get("b").Shape, Is.EqualTo(new[] { 2, 3 }));
            Assert.That(
                reader.ReadFloats("b").Select(BitConverter.SingleToInt32Bits),
                Is.EqualTo(Values.Select(BitConverter.SingleToInt32Bits)));
            Assert.That(reader.ReadIntegers("ä\"\n"), Is.EqualTo(new[] { -7 }));
            Assert.That(reader.ReadFloats("none"), Is.Empty);
            Assert.That(reader.Metadata["format"], Is.EqualTo("pt"));
            Assert.That(
                new FileInfo(path).Length % 8, Is.EqualTo(((6 * 4) + 4) % 8), "the data starts at a multiple of 8");
        });
    }

    [Test]
    public void HalfTypes_Read_AreConverted()
    {
        using var directory = new TemporaryDirectory();
        byte[] data = new byte[12];
        BinaryPrimitives.WriteHalfLittleEndian(data, (Half)1.5f);
        BinaryPrimitives.WriteUInt16LittleEndian(data.AsSpan(2), 0xC020);
        BinaryPrimitives.WriteDoubleLittleEndian(data.AsSpan(4), 0.1);
        string path = WriteRaw(
            directory,
            """
            {"f16":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},
             "bf16":{"dtype":"BF16","shape":[1],"data_offsets":[2,4]},
            "f64":{"dtype":"F64","shape":[],"data_offsets":[4,12]}}
            """,
            data);
        using SafetensorsReader reader = SafetensorsReader.Open(path);
        Assert.Multiple(() =>
        {
            Assert.That(reader.ReadFloats("f16"), Is.EqualTo(new[] { 1.5f }));
            Assert.That(reader.ReadFloats("bf16"), Is.EqualTo(new[] { -2.5f }));
            Assert.That(reader.ReadFloats("f64"), Is.EqualTo(new[] { 0.1f }));
        });
    }

    [TestCase("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}""", 8, "JSON")]
    [TestCase("""[]""", 0, "JSON object")]
    [TestCase("""{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}""", 8, "F31")]
    [TestCase("""{"a":{"dtype":7,"shape":[2],"data_offsets":[0,8]}}""", 8, "dtype")]
    [TestCase("""{"a":{"shape":[2],"data_offsets":[0,8]}}""", 8, "dtype")]
    [TestCase("""{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}""", 8, "shape")]
    [TestCase("""{"a":{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}}""", 8, "shape")]
    [TestCase("""{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}""", 8, "found 12")]
    [TestCase("""{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}""", 8, "more than 2^63")]
    [TestCase("""{"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}}""", 4, "more than 2^63")]
    [TestCase("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}""", 8, "begin <= end")]
    [TestCase("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}}""", 8, "begin, end")]
    [TestCase("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,99999999999999999999]}}""", 8, "data_offsets")]
    [TestCase(
        """{"a":{"dtype":"F32","shape":[2305843009213693951],"data_offsets":[0,9223372036854775804]}}""",
        8,
        "within the file"
    )]
    [TestCase("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}""", 12, "hole")]
    [TestCase(
        """{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":"""
            + """{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}""",
        8,
        "overlaps"
    )]
    [TestCase("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", 12, "found a file")]
    [TestCase("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", 4, "within the file")]
    [TestCase(
        """{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}""",
        0,
        "twice"
    )]
    [TestCase("""{"__metadata__":{"a":1}}""", 0, "__metadata__.a")]
    [TestCase("""{"__metadata__":[]}""", 0, "__metadata__")]
    [TestCase("""{"a":[[[[[[[[[[[1]]]]]]]]]]]}""", 0, "JSON")]
    [TestCase("""{"\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}""", 0, "text")]
    public void BadHeader_Opened_NamesFileAndProblem(string header, int dataBytes, string problem)
    {
        using var directory = new TemporaryDirectory();
        string path = WriteRaw(directory, header, new byte[dataBytes]);
        ReformerFormatException error = Assert.Throws<ReformerFormatException>(() =>
            SafetensorsReader.Open(path).Dispose()
        )!;
        Assert.That(error.Message, Does.StartWith(path).And.Contain(problem).And.Contain("expected"));
    }

    [TestCase(0UL)]
    [TestCase(100_000_001UL)]
    [TestCase((ulong)long.MaxValue)]
    [TestCase(ulong.MaxValue)]
    public void LyingHeaderLength_Opened_Throws(ulong length)
    {
        using var directory = new TemporaryDirectory();
        byte[] file = new byte[64];
        BinaryPrimitives.WriteUInt64LittleEndian(file, length);
        string path = directory.File("a");
        File.WriteAllBytes(path, file);
        Assert.Throws<ReformerFormatException>(() => SafetensorsReader.Open(path).Dispose());
    }

    [Test]
    public void TruncatedFile_AtEveryLength_ThrowsFormatException()
    {
        using var directory = new TemporaryDirectory();
        string path = WriteSample(directory);
        byte[] whole = File.ReadAllBytes(path);
        string cut = directory.File("cut");
        for (int length = 0; length < whole.Length; length++)
        {
            File.WriteAllBytes(cut, whole.AsSpan(0, length));
            Assert.Throws<ReformerFormatException>(() => SafetensorsReader.Open(cut).Dispose(), $"{length} bytes");
        }
    }

    [Test]
    public void FileWithRandomDamage_OpenedAndRead_ThrowsNothingButFormatException()
    {
        const int seed = 20240501;
        var random = new Random(seed);
        using var directory = new TemporaryDirectory();
        byte[] whole = File.ReadAllBytes(WriteSample(directory));
        string path = directory.File("damaged");
        int refused = 0;
        for (int trial = 0; trial < 3000; trial++)
        {
            byte[] damaged = [.. whole];
            int changes = random.Next(1, 6);
            for (int i = 0; i < changes; i++)
            {
                // Mostly the header: the data may hold anything.
                damaged[random.Next(random.Next(4) == 0 ? 8 : damaged.Length - 24)] = (byte)random.Next(256);
            }

            File.WriteAllBytes(path, damaged);
            try
            {
                using SafetensorsReader reader = SafetensorsReader.Open(path);
                foreach (SafetensorsEntry entry in reader.Entries)
                {
                    if (
                        entry.Type
                        is SafetensorsType.F32
                            or SafetensorsType.F16
                            or SafetensorsType.BF16
                            or SafetensorsType.F64
                    )
                    {
                        reader.ReadFloats(entry.Name);
                    }
                    else
                    {
                        reader.ReadBytes(entry, 0, new byte[entry.ByteCount]);
                    }
                }
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

        Assert.That(refused, Is.InRange(1000, 2999), "most damage is found, some changes only a name");
    }

    [Test]
    public void WrongKindOfNumber_Read_Throws()
    {
        using var directory = new TemporaryDirectory();
        using SafetensorsReader reader = SafetensorsReader.Open(WriteSample(directory));
        Assert.Multiple(() =>
        {
            Assert.That(
                () => reader.ReadFloats("integers"),
                Throws.TypeOf<ReformerFormatException>().With.Message.Contains("found I32"));
            Assert.That(
                () => reader.ReadIntegers("floats"),
                Throws.TypeOf<ReformerFormatException>().With.Message.Contains("found F32"));
            Assert.That(
                () => reader.ReadFloats("absent"),
                Throws.TypeOf<ReformerFormatException>().With.Message.Contains("'absent'"));
            Assert.That(
                () => reader.ReadBytes(reader.Get("floats"), 23, new byte[2]),
                Throws.TypeOf<ArgumentOutOfRangeException>());
        });
    }

    [Test]
    public void IntegerBeyond32Bits_Read_Throws()
    {
        using var directory = new TemporaryDirectory();
        byte[] data = new byte[8];
        BinaryPrimitives.WriteInt64LittleEndian(data, 1L << 32);
        using SafetensorsReader reader = SafetensorsReader.Open(
            WriteRaw(directory, """{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}""", data)
        );
        Assert.That(
            () => reader.ReadIntegers("a"), Throws.TypeOf<ReformerFormatException>().With.Message.Contains("'a'"));
    }

    [Test]
    public void MissingFileAndDirectory_Opened_SayWhatIsThere()
    {
        using var directory = new TemporaryDirectory();
        Assert.Multiple(() =>
        {
            Assert.That(
                () => SafetensorsReader.Open(directory.File("no")),
                Throws.TypeOf<FileNotFoundException>().With.Message.Contains("nothing"));
            Assert.That(
                () => SafetensorsReader.Open(directory.Path),
                Throws.TypeOf<FileNotFoundException>().With.Message.Contains("a directory"));
        });
    }

    [Test]
    public void Writer_FailingInTheMiddle_LeavesTheOldFile()
    {
        using var directory = new TemporaryDirectory();
        string path = WriteSample(directory);
        byte[] before = File.ReadAllBytes(path);
        var failing = new SafetensorsItem("x", SafetensorsType.F32, [1 << 20], (offset, bytes) =>
        {
            if (offset > 0)
            {
                throw new IOException("no more");
            }
        });
        Assert.Throws<IOException>(() => SafetensorsWriter.Write(path, [failing]));
        Assert.Multiple(() =>
        {
            Assert.That(File.ReadAllBytes(path), Is.EqualTo(before));
            Assert.That(
                Directory.EnumerateFileSystemEntries(directory.Path).Count(), Is.EqualTo(1), "nothing is left beside");
        });
    }

    [TestCase("twice", "twice")]
    [TestCase("__metadata__", "other")]
    public void Writer_GivenBadNames_Throws(string first, string second)
    {
        using var directory = new TemporaryDirectory();
        SafetensorsItem[] items =
        [
            SafetensorsItem.FromFloats(first, [], new float[1]),
            SafetensorsItem.FromFloats(second, [], new float[1]),
        ];
        Assert.Throws<ArgumentException>(() => SafetensorsWriter.Write(directory.File("a"), items));
    }

    private static string WriteSample(TemporaryDirectory directory)
    {
        string path = directory.File("sample");
        SafetensorsWriter.Write(
            path,
            [
                SafetensorsItem.FromIntegers("integers", [2, 2], new[] { 1, 2, 3, 4 }),
                SafetensorsItem.FromFloats("floats", [6], Values),
            ],
            new Dictionary<string, string> { ["a"] = "b" }
        );
        return path;
    }

    private static string WriteRaw(TemporaryDirectory directory, string header, byte[] data)
    {
        byte[] text = Encoding.UTF8.GetBytes(header);
        byte[] length = new byte[8];
        BinaryPrimitives.WriteInt64LittleEndian(length, text.Length);
        string path = directory.File("raw");
        File.WriteAllBytes(path, [.. length, .. text, .. data]);
        return path;
    }
}
