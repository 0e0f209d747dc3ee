using ReformerNative.Checkpoints;

namespace ReformerNative.Tests.Cli;

/// <summary>Disks and streams that fail, files that are none.</summary>
public sealed class DiskTests
{
    /// <summary>A library in front of the system's: fsync fails for files or for directories, and nothing else
    /// does.</summary>
    private const string FailingSync = """
        #include <errno.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/stat.h>

        int fsync(int file) {
          struct stat status;
          const char *failing = getenv("FAILING_SYNC");
          if (failing != NULL && fstat(file, &status) == 0 &&
              strcmp(failing, S_ISDIR(status.st_mode) ? "directories" : "files") == 0) {
            errno = EIO;
            return -1;
          }
          return 0;
        }
        """;

    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void Make()
    {
        _directory = new TemporaryDirectory();
        ShellRun.WriteInputs(_directory);
    }

    [TearDown]
    public void Remove() => _directory.Dispose();

    [Test]
    public void Train_SyncFails_EndsWithASentenceAndKeepsOlderCheckpoints([Values("files", "directories")] string what)
    {
        File.WriteAllText(_directory.File("failing.c"), FailingSync);
        (int code, _, string problems) = Repository.Run(
            "cc", "-shared", "-fPIC", "-o", _directory.File("failing.so"), _directory.File("failing.c"));
        Assert.That(code, Is.Zero, problems);
        ReformerResult good = ShellRun.Run(_directory, $"$R {ShellRun.Quick} --steps 2 --checkpoint-every 1");
        Assert.That(good.ExitCode, Is.Zero, good.Errors);
        ReformerResult bad = ShellRun.Run(
            _directory,
            $"LD_PRELOAD=$PWD/failing.so FAILING_SYNC={what} "
                + "$R train --resume run --steps 6 --checkpoint-every 1 --threads 1 --sample 0");
        ShellRun.AssertRefused(bad, "could not be forced to the disk");
        Assert.That(bad.Output, Does.Not.Contain("done after"));
        Assert.That(
            CheckpointStore.List(_directory.File("run")).Select(item => item.Step), Is.SupersetOf(new[] { 1, 2 }));
        ReformerResult again = ShellRun.Run(_directory, "$R train --resume run --steps 6 --threads 1 --sample 0");
        Assert.That(again.ExitCode, Is.Zero, again.Errors);
    }

    [Test]
    public void Train_OutputThatTakesNothing_CostsNoWork()
    {
        ReformerResult full = ShellRun.Run(_directory, $"$R {ShellRun.Quick} --steps 3 --log-every 1 > /dev/full");
        ShellRun.AssertRefused(full, "standard output could not be written");
        Assert.That(File.Exists(_directory.File("run/step-00000003/model.safetensors")), Is.True);
    }

    [Test]
    public void Train_ReaderThatLeaves_CostsNoWork()
    {
        ReformerResult cut = ShellRun.Run(_directory, $"$R {ShellRun.Quick} --steps 20 --log-every 1 | head -n 1");
        Assert.That(cut.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries), Has.Length.EqualTo(1));
        Assert.That(File.Exists(_directory.File("run/step-00000020/model.safetensors")), Is.True);
    }

    [TestCase("info")]
    [TestCase("info --json")]
    [TestCase("plan --length 1024")]
    [TestCase("train --help")]
    public void Commands_OutputThatTakesNothing_SaySo(string arguments) =>
        ShellRun.AssertRefused(
            ShellRun.Run(_directory, $"$R {arguments} > /dev/full"), "standard output could not be written");

    [Test]
    public void Errors_ThatNobodyTakes_LeaveTheExitCode() =>
        Assert.That(ShellRun.Run(_directory, "$R verify no-such-directory 2> /dev/full").ExitCode, Is.EqualTo(1));

    [Test]
    public void Train_TooFewOpenFiles_IsASentence() =>
        ShellRun.AssertRefused(
            ShellRun.Run(_directory, $"ulimit -n 60; $R {ShellRun.Quick} --steps 1 2>&1 >/dev/null | tee errors >&2; "
                + "exit ${PIPESTATUS[0]}"));

    [Test]
    public void Checkpoint_FileThatNeverEnds_IsRefused(
        [Values("config.json", "trainer.json", "model.safetensors", "optimizer.safetensors")] string file)
    {
        Assert.That(ShellRun.Run(_directory, $"$R {ShellRun.Quick} --steps 1").ExitCode, Is.Zero);
        ShellRun.AssertRefused(
            ShellRun.Run(
                _directory,
                $"ln -sf /dev/zero run/step-00000001/{file}; ulimit -v 40000000; "
                    + "timeout 100 $R train --resume run --steps 2 --threads 1"),
            file, "found a device");
    }

    [Test]
    public void Checkpoint_PipeForWeights_IsRefused()
    {
        Assert.That(ShellRun.Run(_directory, $"$R {ShellRun.Quick} --steps 1").ExitCode, Is.Zero);
        ShellRun.AssertRefused(
            ShellRun.Run(
                _directory,
                "cd run/step-00000001; rm model.safetensors; mkfifo model.safetensors; "
                    + "timeout 100 $R evaluate . --threads 1"),
            "model.safetensors", "found a pipe");
    }

    [Test]
    public void Run_DescriptionThatNeverEnds_IsRefused()
    {
        Assert.That(ShellRun.Run(_directory, $"$R {ShellRun.Quick} --steps 1").ExitCode, Is.Zero);
        ShellRun.AssertRefused(
            ShellRun.Run(
                _directory, "ln -sf /dev/zero run/run.json; timeout 100 $R train --resume run --steps 2 --threads 1"),
            "run.json", "found a device");
    }

    [Test]
    public void Verify_DescriptionThatNeverEnds_IsRefused()
    {
        CliInputs.CopyDirectory(
            Repository.PathOf("tests", "vectors", "lucidrains", "causal-4hash-nodup"), _directory.File("case"));
        ShellRun.AssertRefused(
            ShellRun.Run(_directory, "ln -sf /dev/zero case/case.json; timeout 100 $R verify case --json"),
            "case.json", "found a device");
    }

    [Test]
    public void Verify_WriteToALink_WritesThroughIt()
    {
        string vectors = Repository.PathOf("tests", "vectors", "lucidrains", "causal-4hash-nodup");
        ReformerResult result = ShellRun.Run(
            _directory, $"mkdir elsewhere; ln -s elsewhere/real link; $R verify {vectors} --write link --threads 1");
        Assert.That(result.ExitCode, Is.Zero, result.Errors);
        Assert.That(new FileInfo(_directory.File("link")).LinkTarget, Is.EqualTo("elsewhere/real"));
        using SafetensorsReader written = SafetensorsReader.Open(_directory.File("elsewhere/real"));
        Assert.That(written.Entries, Is.Not.Empty);
    }

    [Test]
    public void Verify_WriteToAPipe_IsRefusedAndLeavesIt()
    {
        string vectors = Repository.PathOf("tests", "vectors", "lucidrains", "causal-4hash-nodup");
        ShellRun.AssertRefused(
            ShellRun.Run(_directory, $"mkfifo pipe; timeout 100 $R verify {vectors} --write pipe --threads 1"),
            "found a pipe");
        Assert.That(ShellRun.Run(_directory, "test -p pipe").ExitCode, Is.Zero);
    }

    [Test]
    public void Verify_ThousandsOfStrangeTensors_AreCounted()
    {
        string vectors = CliInputs.CopyDirectory(
            Repository.PathOf("tests", "vectors", "lucidrains", "causal-4hash-nodup"), _directory.File("case"));
        string io = Path.Combine(vectors, "io.safetensors");
        var items = new List<SafetensorsItem>();
        using (SafetensorsReader file = SafetensorsReader.Open(io))
        {
            items.AddRange(file.Entries.Select(entry =>
            {
                var bytes = new byte[entry.ByteCount];
                file.ReadBytes(entry, 0, bytes);
                return new SafetensorsItem(
                    entry.Name, entry.Type, entry.Shape,
                    (offset, destination) => bytes.AsSpan((int)offset, destination.Length).CopyTo(destination));
            }));
        }

        const int strange = 5000;
        items.AddRange(Enumerable.Range(0, strange)
            .Select(i => SafetensorsItem.FromFloats($"strange.{i}", [1], new float[1])));
        SafetensorsWriter.Write(io, items);
        ReformerResult result = ShellRun.Run(_directory, "$R verify case --threads 1");
        Assert.That(result.ExitCode, Is.EqualTo(1));
        Assert.That(result.Output, Does.Contain($"and {strange - 20} more"));
        Assert.That(result.Output.Split('\n'), Has.Length.LessThan(60));
    }
}
