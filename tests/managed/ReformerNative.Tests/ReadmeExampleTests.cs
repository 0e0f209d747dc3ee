using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Tests;

/// <summary>The README's C# example is this file's: it compiles, runs and lowers the loss.</summary>
public sealed class ReadmeExampleTests
{
    private const string Begin = "        // README: begin";
    private const string End = "        // README: end";

    [Test]
    public void Example_LoadsComputesALossAndTrains()
    {
        using var folder = new TemporaryDirectory();
        string text = folder.File("text.txt");
        File.WriteAllText(text, string.Concat(Enumerable.Repeat("the quick brown fox jumps over the lazy dog. ", 400)));
        using (var scratch = new ReformerContext())
        using (ReformerModel fresh = ReformerModel.Create(ReformerPresets.Text, scratch, seed: 1))
        {
            fresh.Save(folder.Path);
        }

        (double before, double after) = Run(folder.Path, text);
        Assert.That(after, Is.LessThan(before));
    }

    [Test]
    public void Example_IsTheOneInTheReadme()
    {
        string[] source = File.ReadAllLines(
            Repository.PathOf("tests/managed/ReformerNative.Tests/ReadmeExampleTests.cs"));
        IEnumerable<string> lines = source
            .SkipWhile(line => line != Begin)
            .Skip(1)
            .TakeWhile(line => line != End)
            .Select(line => line.Length == 0 ? "" : line[4..]);
        string example = string.Join('\n', lines);
        Assert.That(example, Is.Not.Empty);
        Assert.That(File.ReadAllText(Repository.PathOf("README.md")).ReplaceLineEndings("\n"), Does.Contain(example));
    }

    private static (double Before, double After) Run(string directory, string path)
    {
        // README: begin
        using var context = new ReformerContext();                                    // this machine's processors
        using ReformerModel model = ReformerModel.Load(directory, context);           // config.json + model.safetensors
        using var text = TextFiles.Open([path]);                                      // bytes of files and folders
        var batch = new TokenBatch(batchSize: 2, length: 256);
        text.Fill(batch, DataSplit.HeldOut, seed: 1, index: 0);
        double before = model.Evaluate(batch).Bits;                                   // forward: bits per byte
        using var trainer = new Trainer(model, text, new TrainingOptions { Steps = 20, BatchSize = 2, Length = 256 });
        trainer.Run();                                                                // forward, gradients, AdamW
        double after = model.Evaluate(batch).Bits;
        // README: end
        return (before, after);
    }
}
