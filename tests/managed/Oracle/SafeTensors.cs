using System.Buffers.Binary;
using System.Text.Json;

namespace ReformerNative.Oracle;

/// <summary>A tensor of a safetensors file; integers and booleans are widened to float64 exactly.</summary>
public sealed record StoredTensor(string Type, int[] Shape, double[] Values)
{
    public int[] Integers => [.. Values.Select(v => (int)v)];

    public bool[] Booleans => [.. Values.Select(v => v != 0)];
}

/// <summary>Reads safetensors files: a length, a JSON header, raw little-endian data.</summary>
public static class SafeTensors
{
    public static IReadOnlyDictionary<string, StoredTensor> Read(string path)
    {
        var bytes = File.ReadAllBytes(path);
        var headerLength = (int)BinaryPrimitives.ReadInt64LittleEndian(bytes);
        using var header = JsonDocument.Parse(bytes.AsMemory(8, headerLength));
        var tensors = new Dictionary<string, StoredTensor>();
        foreach (var entry in header.RootElement.EnumerateObject().Where(e => e.Name != "__metadata__"))
        {
            var type = entry.Value.GetProperty("dtype").GetString()!;
            int[] shape = [.. entry.Value.GetProperty("shape").EnumerateArray().Select(e => e.GetInt32())];
            var offsets = entry.Value.GetProperty("data_offsets");
            var data = bytes.AsSpan(
                8 + headerLength + offsets[0].GetInt32(), offsets[1].GetInt32() - offsets[0].GetInt32());
            var values = new double[shape.Aggregate(1, (a, n) => a * n)];
            var size = values.Length == 0 ? 0 : data.Length / values.Length;
            for (var i = 0; i < values.Length; i++)
            {
                var item = data.Slice(i * size, size);
                values[i] = type switch
                {
                    "F32" => BinaryPrimitives.ReadSingleLittleEndian(item),
                    "F64" => BinaryPrimitives.ReadDoubleLittleEndian(item),
                    "I64" => BinaryPrimitives.ReadInt64LittleEndian(item),
                    "I32" => BinaryPrimitives.ReadInt32LittleEndian(item),
                    "BOOL" or "U8" => item[0],
                    _ => throw new NotSupportedException($"{path}: {entry.Name} has type {type}"),
                };
            }

            tensors.Add(entry.Name, new(type, shape, values));
        }

        return tensors;
    }
}
