using System.Text.Json;

namespace ReformerNative.Oracle.Tests;

public sealed class LucidrainsVectorTests
{
    private static IEnumerable<string> Cases => Vectors.Cases("lucidrains");

    [TestCaseSource(nameof(Cases))]
    public void Case_EveryTensor_EqualsFloat64Truth(string name)
    {
        var folder = Path.Combine(Vectors.Root, "lucidrains", name);
        var io = SafeTensors.Read(Path.Combine(folder, "io.safetensors"));
        using var json = JsonDocument.Parse(File.ReadAllText(Path.Combine(folder, "case.json")));
        var choices = json.RootElement.GetProperty("options");
        var duplicates = choices.GetProperty("allow_duplicate_attention").GetBoolean();
        var qk = io["qk"];
        var shape = new AttentionShape(qk.Shape[0], qk.Shape[1], 1, qk.Shape[2]);
        var options = new AttentionOptions
        {
            Kind = AttentionKind.Lsh,
            SharedQk = true,
            Causal = choices.GetProperty("causal").GetBoolean(),
            Window = choices.GetProperty("attend_across_buckets").GetBoolean() ? LshWindow.Slots : LshWindow.SameBucket,
            Wrap = true,
            RepeatChunks = true,
            LogCount = !duplicates,
            KeyNorm = KeyNorm.L2,
            Rounds = choices.GetProperty("n_hashes").GetInt32(),
            Factors = [json.RootElement.GetProperty("n_buckets").GetInt32()],
            ChunksBefore = 1,
            ChunkLength = choices.GetProperty("bucket_size").GetInt32(),
        };
        var mask = io.TryGetValue("input_mask", out var stored) ? stored.Booleans : null;
        var buckets = Lsh.Hash(options, shape, qk.Values, mask, io["rotations"].Values);
        Assert.That(buckets, Is.EqualTo(io["buckets.raw"].Integers));

        var input = new AttentionInput(shape, qk.Values, null, io["v"].Values, mask, buckets);
        var result = Attention.Forward(options, input, Randomness.None);
        var gradients = Attention.Backward(options, input, Randomness.None, io["grad_out"].Values);
        double[] errors =
        [
            Vectors.RelativeError(result.Out, io["f64.out"].Values, shape.HeadSize, mask),
            Vectors.RelativeError(gradients.Q, io["f64.grad_qk"].Values),
            Vectors.RelativeError(gradients.V, io["f64.grad_v"].Values),
        ];
        TestContext.Out.WriteLine($"{name}: out {errors[0]:e1}, grad_qk {errors[1]:e1}, grad_v {errors[2]:e1}");
        Assert.That(errors, Is.All.LessThan(Vectors.Float32Rounding));
    }
}
