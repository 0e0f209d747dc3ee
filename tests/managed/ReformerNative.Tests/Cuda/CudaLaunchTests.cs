using System.Globalization;
using System.Runtime.InteropServices;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Tests.Cuda;

/// <summary>
/// How often a training step starts something on the device: kernels, products of cuBLASLt, copies and fills. Each
/// costs microseconds, whatever it does.
/// </summary>
public sealed partial class CudaLaunchTests
{
    /// <summary>
    /// Six layers of the model of <c>./reformer train</c>. Widths, batch and length are smaller, as the number of
    /// launches does not depend on them: rows go through every op in one chunk, and segments through one block of the
    /// sort, up to 8,192 tokens. (Two sequences of 1,024 tokens, the command's default, give the same table.)
    /// </summary>
    private static readonly ReformerConfig Config = ReformerPresets.Text with
    {
        AttnLayers = [.. Enumerable.Repeat<AttentionKind[]>([AttentionKind.Local, AttentionKind.Lsh], 3)
            .SelectMany(kinds => kinds)],
        AttentionHeadSize = 8,
        AxialPosEmbdsDim = [4, 12],
        FeedForwardSize = 32,
        HiddenSize = 16,
        NumAttentionHeads = 2,
    };

    [TestCase(OptimizerKind.AdamW, 2, 323)]
    [TestCase(OptimizerKind.Adafactor, 4, 349)]
    public void Step_StartsNoMoreThan(OptimizerKind optimizer, int rounds, int most)
    {
        using ReformerContext cuda = CudaOnHost.Open();
        using ReformerModel model = ReformerModel.Create(Config with { NumHashes = rounds }, cuda, 1);
        var options = new TrainingOptions { Steps = 2, BatchSize = 1, Length = 256, Optimizer = optimizer };
        using var trainer = new Trainer(model, new DuplicationTask(Config.VocabSize - 1), options);
        trainer.RunStep(); // sizes its workspace
        Dictionary<string, long> before = Work();
        trainer.RunStep();
        Dictionary<string, long> counts = Work()
            .ToDictionary(pair => pair.Key, pair => pair.Value - before.GetValueOrDefault(pair.Key));
        string table = string.Join(
            '\n', counts.Where(pair => pair.Value > 0).OrderByDescending(pair => pair.Value)
                .Select(pair => $"{pair.Value,6} {pair.Key}").Append($"{counts.Values.Sum(),6} in all"));
        TestContext.Out.WriteLine(table);
        Assert.That(counts.Values.Sum(), Is.LessThanOrEqualTo(most), table);
    }

    private static Dictionary<string, long> Work() =>
        Marshal.PtrToStringUTF8(NativeWork())!
            .Split('\n', StringSplitOptions.RemoveEmptyEntries)
            .Select(line => line.Split(' ', 2))
            .ToDictionary(words => words[1], words => long.Parse(words[0], CultureInfo.InvariantCulture));

    // The plug-in has loaded it, so its name is enough.
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    [LibraryImport("libcuda_on_host.so", EntryPoint = "rfn_cuda_on_host_work")]
    private static partial nint NativeWork();
}
