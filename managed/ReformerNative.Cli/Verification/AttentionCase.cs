using System.Text.Json;
using System.Text.Json.Nodes;
using ReformerNative.Checkpoints;
using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Cli.Verification;

/// <summary>
/// The LSH attention of reformer-pytorch alone: case.json with the options of its constructor, io.safetensors.
/// </summary>
internal static class AttentionCase
{
    /// <summary>What the file gives and the op takes as it is. The rotations are among them.</summary>
    public static readonly string[] Inputs = ["qk", "v", "grad_out", "input_mask", "rotations"];

    public static Dictionary<string, ComputedTensor> Compute(
        string directory, JsonObject description, SafetensorsReader io, ReformerContext context)
    {
        IReadOnlyList<long> size = io.Get("qk").Shape;
        IReadOnlyList<long> rotationsSize = io.Get("rotations").Shape;
        if (size.Count != 3 || rotationsSize.Count != 4)
        {
            throw new ReformerFormatException(
                io.Path, "expected 'qk' [rows, L, dim] and 'rotations' [1 or rows, dim, n_hashes, n_buckets / 2]");
        }

        long rows = size[0];
        long length = size[1];
        long width = size[2];
        AttentionOptions options = Options(Path.Combine(directory, "case.json"), description, rotationsSize);
        int rounds = options.Rounds;
        int buckets = (int)options.Factors.Buckets;
        byte[]? mask = io.TryGet("input_mask", out _)
            ? Array.ConvertAll(io.ReadIntegers("input_mask"), value => (byte)value)
            : null;

        // A row is one head of one example: batch = rows, heads = 1.
        var shape = new TensorShape(rows, length, 1, width);
        using Tensor q = context.FromValues<float>(io.ReadFloats("qk"), shape);
        using Tensor v = context.FromValues<float>(io.ReadFloats("v"), shape);
        using Tensor gradOut = context.FromValues<float>(io.ReadFloats("grad_out"), shape);
        using Tensor rotations = context.FromValues<float>(
            io.ReadFloats("rotations"),
            new TensorShape(rotationsSize[0], rotationsSize[1], rotationsSize[2], rotationsSize[3]));
        using Tensor? maskTensor = mask is null ? null : context.FromValues<byte>(mask, new TensorShape(rows, length));
        using var found = new Tensor(context, options.BucketsShape(rows, 1, length), DType.Int32);
        using var output = new Tensor(context, shape);
        using var logSumExp = new Tensor(context, new TensorShape(rows, 1, length));
        using var gradQ = new Tensor(context, shape);
        using var gradV = new Tensor(context, shape);
        using var workspace = new Workspace(context);
        var attention = new Attention
        {
            Options = options,
            Q = q,
            V = v,
            Mask = maskTensor,
            Rotations = rotations,
            Buckets = found,
            Out = output,
            LogSumExp = logSumExp,
            GradOut = gradOut,
            GradQ = gradQ,
            GradV = gradV,
        };
        attention.Forward(workspace);
        attention.Backward(workspace);

        int[] raw = found.ToArray<int>();
        int[] withOffset = [.. raw.Select((bucket, i) => bucket + (int)(i / length % rounds * buckets))];
        long[] bucketShape = [rows, rounds, length];
        return new Dictionary<string, ComputedTensor>(StringComparer.Ordinal)
        {
            ["buckets.raw"] = ComputedTensor.Of(raw, bucketShape),
            ["buckets"] = ComputedTensor.Of(withOffset, bucketShape),
            ["out"] = ComputedTensor.Of(output.ToArray<float>(), size, tokenAxis: 1, mask),
            ["grad_qk"] = ComputedTensor.Of(gradQ.ToArray<float>(), size),
            ["grad_v"] = ComputedTensor.Of(gradV.ToArray<float>(), size),
        };
    }

    private static AttentionOptions Options(string path, JsonObject description, IReadOnlyList<long> rotations)
    {
        JsonObject given = description["options"] as JsonObject
            ?? throw new ReformerFormatException(path, "expected an object 'options', found none");
        string Found(string name) => given[name]?.ToJsonString() ?? "nothing";
        bool Flag(string name) =>
            given[name]?.GetValueKind() switch
            {
                JsonValueKind.True => true,
                JsonValueKind.False => false,
                _ => throw new ReformerFormatException(
                    path, $"options.{name}: expected true or false, found {Found(name)}"),
            };
        int Number(string name) =>
            given[name] is JsonValue value && value.TryGetValue(out int number) && number > 0
                ? number
                : throw new ReformerFormatException(
                    path, $"options.{name}: expected an integer from 1 up, found {Found(name)}");

        var buckets = new BucketFactors(checked((int)(2 * rotations[3])));
        return AttentionOptions.Lsh(
            AttentionPreset.Lucidrains, Flag("causal"), Number("bucket_size"), Number("n_hashes"), buckets) with
        {
            Window = Flag("attend_across_buckets") ? AttentionWindow.Slots : AttentionWindow.SameBucket,
            Duplicates = Flag("allow_duplicate_attention") ? DuplicateCorrection.None : DuplicateCorrection.LogCount,
        };
    }
}
