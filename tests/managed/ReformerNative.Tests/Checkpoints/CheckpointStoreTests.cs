using ReformerNative.Checkpoints;

namespace ReformerNative.Tests.Checkpoints;

public sealed class CheckpointStoreTests
{
    /// <summary>Sizes around the stretches in which a file is read.</summary>
    [TestCase(0)]
    [TestCase(1)]
    [TestCase(65536)]
    [TestCase(65537)]
    public void TextFile_OfAnySize_IsReadWhole(int bytes)
    {
        using var directory = new TemporaryDirectory();
        string path = directory.File("text"), text = new('x', bytes);
        File.WriteAllText(path, text);
        Assert.That(RegularFile.ReadText(path, "a text", 65537), Is.EqualTo(text));
        if (bytes > 0)
        {
            Assert.That(
                () => RegularFile.ReadText(path, "a text", bytes - 1),
                Throws.TypeOf<ReformerFormatException>().With.Message.Contains($"at most {bytes - 1} bytes"));
        }
    }

    [Test]
    public void Add_MoreThanKept_RemovesTheOldest()
    {
        using var run = new TemporaryDirectory();
        for (int step = 1; step <= 5; step++)
        {
            CheckpointStore.Add(run.Path, step, 2, path => File.WriteAllText(Path.Combine(path, "config.json"), "x"));
        }

        Assert.Multiple(() =>
        {
            Assert.That(CheckpointStore.List(run.Path).Select(item => item.Step), Is.EqualTo(new[] { 4, 5 }));
            Assert.That(Directory.EnumerateDirectories(run.Path).Count(), Is.EqualTo(2));
            Assert.That(CheckpointStore.Resolve(run.Path), Does.EndWith("step-00000005"));
            Assert.That(CheckpointStore.Resolve(run.File("step-00000004")), Does.EndWith("step-00000004"));
        });
    }

    [Test]
    public void Add_FailingInTheMiddle_LeavesTheLastOne()
    {
        using var run = new TemporaryDirectory();
        CheckpointStore.Add(run.Path, 1, 1, path => File.WriteAllText(Path.Combine(path, "a"), "1"));
        Assert.Throws<IOException>(() => CheckpointStore.Add(run.Path, 2, 1, path =>
        {
            File.WriteAllText(Path.Combine(path, "a"), "2");
            throw new IOException("no more");
        }));
        Assert.That(CheckpointStore.List(run.Path).Select(item => item.Step), Is.EqualTo(new[] { 1 }));
        string next = CheckpointStore.Add(run.Path, 2, 1, path => File.WriteAllText(Path.Combine(path, "a"), "3"));
        Assert.Multiple(() =>
        {
            Assert.That(File.ReadAllText(Path.Combine(next, "a")), Is.EqualTo("3"));
            Assert.That(Directory.EnumerateDirectories(run.Path).Count(), Is.EqualTo(1));
        });
    }

    [Test]
    public void Add_TheSameStepAgain_IsTheNewestAndReplacesNothing()
    {
        using var run = new TemporaryDirectory();
        for (int i = 0; i < 12; i++)
        {
            CheckpointStore.Add(run.Path, 7, 0, path => File.WriteAllText(Path.Combine(path, "config.json"), $"{i}"));
        }

        Assert.Multiple(() =>
        {
            Assert.That(CheckpointStore.List(run.Path), Has.Count.EqualTo(12));
            Assert.That(
                File.ReadAllText(Path.Combine(CheckpointStore.Resolve(run.Path), "config.json")), Is.EqualTo("11"));
        });
    }

    [Test]
    public void Resolve_WithoutCheckpoints_SaysWhatIsThere()
    {
        using var run = new TemporaryDirectory();
        Directory.CreateDirectory(run.File("step-1"));
        Directory.CreateDirectory(run.File(".writing-step-00000001"));
        Assert.Multiple(() =>
        {
            Assert.That(
                () => CheckpointStore.Resolve(run.Path),
                Throws.TypeOf<DirectoryNotFoundException>().With.Message.Contains("neither"));
            Assert.That(
                () => CheckpointStore.Resolve(run.File("no")),
                Throws.TypeOf<DirectoryNotFoundException>().With.Message.Contains("nothing"));
            Assert.That(CheckpointStore.List(run.File("no")), Is.Empty);
        });
    }
}
