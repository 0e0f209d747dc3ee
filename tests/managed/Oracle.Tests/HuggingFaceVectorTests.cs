using System.Globalization;

namespace ReformerNative.Oracle.Tests;

public sealed class HuggingFaceVectorTests
{
    private static IEnumerable<string> Cases => Vectors.Cases("hf");

    [TestCaseSource(nameof(Cases))]
    public void Case_EveryTensor_EqualsFloat64Truth(string name)
    {
        var folder = Path.Combine(Vectors.Root, "hf", name);
        var io = SafeTensors.Read(Path.Combine(folder, "io.safetensors"));
        var ids = io["input_ids"];
        var rotations = io
            .Keys.Where(k => k.StartsWith("rotations.layer", StringComparison.Ordinal) && k.Split('.').Length == 2)
            .ToDictionary(
                k => int.Parse(k["rotations.layer".Length..], CultureInfo.InvariantCulture), k => io[k].Values);
        var mask = io.TryGetValue("attention_mask", out var stored) ? stored.Booleans : null;
        var result = HuggingFaceModel
            .Load(folder)
            .Run(ids.Shape[0], ids.Integers, mask, io["labels"].Integers, rotations);

        static bool IsGradient(string tensor) => tensor.StartsWith("grad.", StringComparison.Ordinal);
        CheckBuckets(io, result);
        var errors = new Dictionary<string, double>();
        foreach (var (key, expected) in io.Where(entry => entry.Key.StartsWith("f64.", StringComparison.Ordinal)))
        {
            var tensor = key["f64.".Length..];
            var isGradient = IsGradient(tensor);
            var actual = isGradient ? result.Gradients[tensor["grad.".Length..]] : result.Tensors[tensor];

            // Padding positions are free; they are the rows of activations, of [B, Lp] or (cut) [B, L] positions.
            var isByPosition = !isGradient && expected.Shape.Length == 3;
            var rows =
                !isByPosition ? null
                : expected.Shape[1] == result.PaddedLength ? result.Mask
                : mask;
            errors.Add(
                tensor, Vectors.RelativeError(actual, expected.Values, isByPosition ? expected.Shape[2] : 1, rows));
        }

        Assert.That(errors.Keys.Count(IsGradient), Is.EqualTo(io.Keys.Count(IsGradient)));
        foreach (var group in errors.GroupBy(e => IsGradient(e.Key)))
        {
            var worst = group.MaxBy(e => e.Value);
            TestContext.Out.WriteLine(
                $"{name}: {group.Count()} {(group.Key ? "gradients" : "tensors")}, worst {worst.Value:e1} {worst.Key}");
        }

        Assert.That(errors.Where(e => !(e.Value < Vectors.Float32Rounding)), Is.Empty);
    }

    private static void CheckBuckets(IReadOnlyDictionary<string, StoredTensor> io, ModelResult result)
    {
        foreach (var (layer, buckets) in result.Buckets)
        {
            Assert.That(buckets, Is.EqualTo(io[$"buckets.layer{layer}.raw"].Integers));
        }

        Assert.That(
            result.Buckets, Has.Count.EqualTo(io.Keys.Count(k => k.EndsWith(".raw", StringComparison.Ordinal))));
    }
}
