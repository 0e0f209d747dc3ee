using System.Text;
using ReformerNative.Checkpoints;
using ReformerNative.Data;

namespace ReformerNative.Tests.Data;

/// <summary>Files and folders that are not as plain as they look.</summary>
public sealed class TextFilesTests
{
    [Test]
    public void TextFiles_ThroughLinks_HaveTheLengthOfTheFile()
    {
        using var directory = new TemporaryDirectory();
        string target = directory.File("a file with a name longer than its content");
        File.WriteAllText(target, "0123456789");
        Directory.CreateDirectory(directory.File("folder"));
        File.CreateSymbolicLink(directory.File("link"), "folder/link");
        File.CreateSymbolicLink(directory.File("folder/link"), target);
        foreach (string path in (string[])[directory.File("link"), directory.File("folder"), target])
        {
            using TextFiles text = Open(path);
            Assert.That(text.ByteCount, Is.EqualTo(10), path);
        }

        using TextFiles whole = Open(directory.Path, directory.File("link"));
        Assert.That(whole.ByteCount, Is.EqualTo(10), "a file by three paths is one text");
    }

    [Test]
    [CancelAfter(60_000)]
    public void TextFiles_OfAFolderWithLinksToItself_EndAndTakeEachFileOnce()
    {
        using var directory = new TemporaryDirectory();
        foreach (string name in (string[])["a", "b"])
        {
            Directory.CreateDirectory(directory.File(name));
            File.WriteAllText(directory.File($"{name}/{name}.txt"), name);
            Directory.CreateSymbolicLink(directory.File($"{name}/up"), "..");
            Directory.CreateSymbolicLink(directory.File($"{name}/round"), "../a/up/b/up/a");
        }

        File.CreateSymbolicLink(directory.File("self"), "self");
        using TextFiles text = Open(directory.Path);
        Assert.That((text.FileCount, text.ByteCount), Is.EqualTo((2, 2L)));
    }

    [Test]
    public void TextFiles_OfAFolder_LeaveOutWhatIsHiddenDanglingOrARun()
    {
        using var directory = new TemporaryDirectory();
        string[] files =
        [
            "text", ".hidden", ".git/config", "runs/text-1/run.json", "runs/text-1/step-00000001/config.json",
            "model/model.safetensors", "model/config.json",
        ];
        foreach (string file in files)
        {
            Directory.CreateDirectory(Path.GetDirectoryName(directory.File(file))!);
            File.WriteAllText(directory.File(file), "0123");
        }

        File.CreateSymbolicLink(directory.File("dangling"), "nothing");
        using TextFiles text = Open(directory.Path);
        using TextFiles named = Open(directory.File(".hidden"));
        Assert.Multiple(() =>
        {
            Assert.That((text.FileCount, text.ByteCount), Is.EqualTo((1, 4L)));
            Assert.That(named.ByteCount, Is.EqualTo(4), "a file that is named is taken");
            Assert.That(
                () => TextFiles.Open([directory.File("dangling")]),
                Throws.TypeOf<FileNotFoundException>().With.Message.Contains("a link to nothing"));
        });
    }

    [Test]
    public void TextFiles_OfAPipe_AreReadWhole()
    {
        using var directory = new TemporaryDirectory();
        string pipe = directory.File("pipe");
        byte[] bytes = [.. Enumerable.Range(0, 300_000).Select(i => (byte)('a' + (i % 26)))];
        Assert.That(Repository.Run("mkfifo", pipe).ExitCode, Is.Zero);
        var writing = Task.Run(() =>
        {
            using FileStream stream = new(pipe, FileMode.Open, FileAccess.Write);
            stream.Write(bytes);
        });
        using TextFiles text = Open(pipe);
        writing.Wait();
        var ids = new int[bytes.Length];
        text.Read(DataSplit.Train, 0, ids);
        Assert.That(ByteVocabulary.Decode(ids).AsSpan().SequenceEqual(bytes), Is.True);
    }

    [Test]
    public void TextFiles_OfAnEndlessDevice_AreRefused() =>
        Assert.That(
            () => TextFiles.Open(["/dev/zero"]),
            Throws.TypeOf<ReformerFormatException>().With.Message.Contains("/dev/zero: expected at most"));

    [Test]
    public void TextFiles_CutShortWhileOpen_SayWhichFileAndHow()
    {
        using var directory = new TemporaryDirectory();
        string path = directory.File("a");
        File.WriteAllText(path, new string('a', 100_000));
        using TextFiles text = Open(path);
        text.Read(DataSplit.Train, 99_990, new int[10]);
        Assert.That(Repository.Run("truncate", "--size=500", path).ExitCode, Is.Zero);
        Assert.That(
            () => text.Read(DataSplit.Train, 99_990, new int[10]),
            Throws.TypeOf<ReformerFormatException>()
                .With.Message.Contains(path).And.Message.Contains("100000").And.Message.Contains("found 500"));
    }

    [TestCase(5000)]
    [TestCase(20 << 20)]
    public void Identity_OfOtherContentWithTheSameNameAndSize_IsAnother(int size)
    {
        using var directory = new TemporaryDirectory();
        byte[] bytes = new byte[size];
        Array.Fill(bytes, (byte)'a');
        string IdentityWith(int place)
        {
            bytes[place] = (byte)'b';
            File.WriteAllBytes(directory.File("a"), bytes);
            bytes[place] = (byte)'a';
            using TextFiles text = TextFiles.Open([directory.File("a")]);
            return text.Identity;
        }

        string first = IdentityWith(0);
        Assert.That(IdentityWith(size - 1), Is.Not.EqualTo(first));
        Assert.That(IdentityWith(0), Is.EqualTo(first));
    }

    [Test]
    public void TextFiles_ThatLookLikeNoText_AreNamed()
    {
        using var directory = new TemporaryDirectory();
        File.WriteAllText(directory.File("latin"), "caf\u00e9 \t\r\n\u001b", Encoding.Latin1);
        File.WriteAllBytes(directory.File("image.png"), [0x89, .. "PNG\r\n"u8, 0, 0, 0, 13, .. "IHDR"u8]);
        using TextFiles text = Open(directory.Path);
        Assert.That(text.BinaryFiles, Is.EqualTo(new[] { directory.File("image.png") }));
    }

    [Test]
    public void TextFiles_ThatAreGitLfsPointers_AreRefused()
    {
        using var directory = new TemporaryDirectory();
        File.WriteAllText(
            directory.File("a"), "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n");
        Assert.That(
            () => Open(directory.Path), Throws.TypeOf<ReformerFormatException>().With.Message.Contains("Git LFS"));
    }

    [Test]
    public void TextFiles_WithANameThatIsNotUtf8_AreRefused()
    {
        using var directory = new TemporaryDirectory();
        (int code, _, string errors) = Repository.Run(
            "bash", "-c", $"printf text > '{directory.Path}'/$'caf\\xe9'");
        Assert.That(code, Is.Zero, errors);
        Assert.That(
            () => Open(directory.Path), Throws.TypeOf<ReformerFormatException>().With.Message.Contains("UTF-8"));
        Repository.Run("rm", "-r", directory.Path);
        Directory.CreateDirectory(directory.Path);
    }

    /// <summary>A folder may have more files than a process may have open.</summary>
    [Test]
    public void TextFiles_OfManyFiles_HoldSomeOpen()
    {
        using var directory = new TemporaryDirectory();
        for (int file = 0; file < 150; file++)
        {
            File.WriteAllText(directory.File($"{file}"), "0123456789");
        }

        using TextFiles text = Open(directory.Path);
        text.Read(DataSplit.Train, 0, new int[text.TokenCount(DataSplit.Train)]);
        int open = Directory.EnumerateFileSystemEntries("/proc/self/fd")
            .Select(entry => new FileInfo(entry).LinkTarget ?? "")
            .Count(target => target.StartsWith(directory.Path, StringComparison.Ordinal));
        Assert.That(open, Is.EqualTo(64));
    }

    private static TextFiles Open(params string[] paths) => TextFiles.Open(paths, heldOutFraction: 0);
}
