using System.Text.Json;

namespace ReformerNative.Checkpoints;

/// <summary>The JSON header of a safetensors file: where each tensor lies, checked against the file's size.</summary>
internal static class SafetensorsHeader
{
    /// <summary>The tensors in the order of their data, which leaves no hole and ends with the file.</summary>
    /// <param name="path">What errors call the file.</param>
    /// <param name="root">The header.</param>
    /// <param name="dataStart">Where the data begins in the file, in bytes.</param>
    /// <param name="fileBytes">Size of the file.</param>
    /// <param name="metadata">Takes the header's free-form strings.</param>
    public static List<SafetensorsEntry> Parse(
        string path, JsonElement root, long dataStart, long fileBytes, Dictionary<string, string> metadata)
    {
        if (root.ValueKind != JsonValueKind.Object)
        {
            throw new ReformerFormatException(path, $"expected the header to be a JSON object, found {root.ValueKind}");
        }

        var entries = new List<SafetensorsEntry>();
        var names = new HashSet<string>(StringComparer.Ordinal);
        foreach (JsonProperty property in root.EnumerateObject())
        {
            if (!names.Add(property.Name))
            {
                throw new ReformerFormatException(path, $"expected each name once, found '{property.Name}' twice");
            }

            if (property.NameEquals(SafetensorsFormat.MetadataName))
            {
                ParseMetadata(path, property.Value, metadata);
            }
            else
            {
                entries.Add(ParseEntry(path, property, dataStart, fileBytes));
            }
        }

        entries.Sort(
            static (a, b) => a.Offset != b.Offset ? a.Offset.CompareTo(b.Offset) : a.ByteCount.CompareTo(b.ByteCount));
        long expected = dataStart;
        foreach (SafetensorsEntry entry in entries)
        {
            if (entry.Offset != expected)
            {
                string how = entry.Offset < expected ? "overlaps the tensor before it" : "leaves a hole before it";
                throw new ReformerFormatException(
                    path,
                    $"'{entry.Name}': expected its data to begin at {expected - dataStart}, found "
                        + $"{entry.Offset - dataStart}, which {how}"
                );
            }

            expected += entry.ByteCount;
        }

        if (expected != fileBytes)
        {
            throw new ReformerFormatException(
                path, $"expected {expected} bytes by the header, found a file of {fileBytes}");
        }

        return entries;
    }

    private static void ParseMetadata(string path, JsonElement value, Dictionary<string, string> metadata)
    {
        if (value.ValueKind != JsonValueKind.Object)
        {
            throw new ReformerFormatException(
                path, $"__metadata__: expected an object of strings, found {value.ValueKind}");
        }

        foreach (JsonProperty item in value.EnumerateObject())
        {
            if (item.Value.ValueKind != JsonValueKind.String)
            {
                throw new ReformerFormatException(
                    path, $"__metadata__.{item.Name}: expected a string, found {item.Value.ValueKind}");
            }

            metadata[item.Name] = item.Value.GetString()!;
        }
    }

    private static SafetensorsEntry ParseEntry(string path, JsonProperty property, long dataStart, long fileBytes)
    {
        ReformerFormatException Wrong(string problem) => new(path, $"'{property.Name}': {problem}");

        JsonElement value = property.Value;
        if (value.ValueKind != JsonValueKind.Object
            || !value.TryGetProperty("dtype", out JsonElement typeName)
            || !value.TryGetProperty("shape", out JsonElement shapeValue)
            || !value.TryGetProperty("data_offsets", out JsonElement offsets)
            || typeName.ValueKind != JsonValueKind.String
            || shapeValue.ValueKind != JsonValueKind.Array
            || offsets.ValueKind != JsonValueKind.Array)
        {
            throw Wrong("expected an object with dtype (string), shape (array) and data_offsets (array)");
        }

        if (!SafetensorsFormat.TryParseType(typeName.GetString(), out SafetensorsType type))
        {
            throw Wrong($"expected a dtype of {SafetensorsFormat.KnownTypes}, found '{typeName.GetString()}'");
        }

        long[] Sizes(JsonElement array, string name) =>
            [
                .. array
                    .EnumerateArray()
                    .Select(item => ParseSize(item) ?? throw Wrong($"expected {name} to hold integers from 0 up")),
            ];

        long[] shape = Sizes(shapeValue, "shape");
        long[] range = Sizes(offsets, "data_offsets");
        if (range.Length != 2 || range[1] < range[0])
        {
            throw Wrong(
                $"expected data_offsets [begin, end] with begin <= end, found {SafetensorsFormat.Describe(range)}");
        }

        // A zero anywhere makes the tensor empty, whatever the other lengths multiply to.
        UInt128 bytes = shape.Contains(0) ? 0 : (UInt128)SafetensorsFormat.SizeOf(type);
        foreach (long length in shape)
        {
            bytes = bytes > (UInt128)long.MaxValue ? bytes : bytes * (UInt128)length;
        }

        if (bytes != (UInt128)(range[1] - range[0]))
        {
            string found =
                bytes > (UInt128)long.MaxValue
                    ? "more than 2^63"
                    : bytes.ToString(System.Globalization.CultureInfo.InvariantCulture);
            throw Wrong(
                $"expected {range[1] - range[0]} bytes by its offsets, found {found} by its shape "
                    + $"{SafetensorsFormat.Describe(shape)}"
            );
        }

        if (range[1] > fileBytes - dataStart)
        {
            throw Wrong(
                $"expected its data to end within the file's {fileBytes - dataStart} bytes of data, found the end "
                    + $"{range[1]}"
            );
        }

        return new SafetensorsEntry(property.Name, type, shape, dataStart + range[0], range[1] - range[0]);
    }

    private static long? ParseSize(JsonElement item) =>
        item.ValueKind == JsonValueKind.Number && item.TryGetInt64(out long size) && size >= 0 ? size : null;
}
