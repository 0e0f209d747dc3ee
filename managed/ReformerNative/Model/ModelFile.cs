using ReformerNative.Checkpoints;
using ReformerNative.Ops;

namespace ReformerNative.Model;

/// <summary>The parameters of a model as a safetensors file with Hugging Face's names.</summary>
internal static class ModelFile
{
    /// <summary>
    /// Constants that Hugging Face's attention layers store beside the parameters; their mask values.
    /// </summary>
    private static readonly (string Name, float Value)[] Constants =
    [
        ("self_mask_value_float16", -1e3f),
        ("self_mask_value_float32", -1e5f),
        ("mask_value_float16", -1e4f),
        ("mask_value_float32", -1e9f),
    ];

    /// <summary>
    /// Checks names, shapes and types against a configuration, before any memory is allocated for them.
    /// </summary>
    public static void Check(SafetensorsReader file, ReformerConfig config)
    {
        var layout = new ParameterLayout(config);
        IReadOnlyDictionary<string, string> secondNames = HeadKind.Of(config.Task).SecondNames;
        var problems = new List<string>();
        var known = new HashSet<string>(secondNames.Values, StringComparer.Ordinal);
        foreach (ParameterSpec spec in layout.Specs)
        {
            known.Add(spec.Name);
            if (!TryFind(file, spec.Name, secondNames, out SafetensorsEntry? entry))
            {
                problems.Add($"expected a tensor '{spec.Name}', found none");
            }
            else if (!entry.Shape.SequenceEqual(spec.FileShape))
            {
                problems.Add(
                    $"'{spec.Name}': expected the shape {SafetensorsFormat.Describe(spec.FileShape)} by the "
                        + "configuration, "
                    + $"found {SafetensorsFormat.Describe(entry.Shape)}");
            }
            else if (entry.Type
                is not (SafetensorsType.F32 or SafetensorsType.F16 or SafetensorsType.BF16 or SafetensorsType.F64))
            {
                problems.Add(
                    $"'{spec.Name}': expected F32, F16, BF16 or F64, found {SafetensorsFormat.NameOf(entry.Type)}");
            }
        }

        problems.AddRange(
            file.Entries.Where(entry => !known.Contains(entry.Name) && !IsConstant(entry.Name))
                .Select(entry => $"expected no tensor '{entry.Name}' by the configuration, found one")
        );
        foreach ((string name, string second) in secondNames)
        {
            if (problems.Count == 0
                && file.TryGet(name, out SafetensorsEntry? one)
                && file.TryGet(second, out SafetensorsEntry? other)
                && !SameValues(file, one, other))
            {
                problems.Add($"'{second}': expected the values of '{name}', whose second name it is, found others");
            }
        }

        if (problems.Count > 0)
        {
            const int shown = 8;
            string more = problems.Count > shown ? $"; and {problems.Count - shown} more" : "";
            throw new ReformerFormatException(file.Path, string.Join("; ", problems.Take(shown)) + more);
        }
    }

    public static void Read(SafetensorsReader file, ReformerConfig config, ModelParameters parameters)
    {
        IReadOnlyDictionary<string, string> secondNames = HeadKind.Of(config.Task).SecondNames;
        for (int i = 0; i < parameters.Values.Length; i++)
        {
            string name = parameters.Layout.Specs[i].Name;
            TryFind(file, name, secondNames, out SafetensorsEntry? entry);
            TensorFile.Read(file, entry!, parameters.Values[i]);
        }
    }

    public static void Write(string path, ReformerConfig config, ModelParameters parameters)
    {
        var items = new List<SafetensorsItem>();
        for (int i = 0; i < parameters.Values.Length; i++)
        {
            ParameterSpec spec = parameters.Layout.Specs[i];
            int layer = Array.FindIndex(parameters.Layout.Layers, indices => indices.Query == i);
            if (layer >= 0)
            {
                items.AddRange(ConstantsOf(config.AttnLayers[layer], spec.Name));
            }

            items.Add(TensorFile.Item(spec.Name, spec.FileShape, parameters.Values[i]));
        }

        foreach ((string name, string second) in HeadKind.Of(config.Task).SecondNames)
        {
            items.Add(items.Single(item => item.Name == name) with { Name = second });
        }

        SafetensorsWriter.Write(path, items, new Dictionary<string, string> { ["format"] = "pt" });
    }

    private static bool TryFind(
        SafetensorsReader file, string name, IReadOnlyDictionary<string, string> secondNames,
        [System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out SafetensorsEntry? entry) =>
        file.TryGet(name, out entry)
        || (secondNames.TryGetValue(name, out string? second) && file.TryGet(second, out entry));

    private static bool SameValues(SafetensorsReader file, SafetensorsEntry left, SafetensorsEntry right)
    {
        if (left.Type != right.Type || !left.Shape.SequenceEqual(right.Shape))
        {
            return false;
        }

        long count = left.Shape.Aggregate(1L, (product, size) => product * size);
        float[] a = new float[(int)Math.Min(TensorFile.ChunkElements, count)];
        float[] b = new float[a.Length];
        for (long start = 0; start < count; start += a.Length)
        {
            int n = (int)Math.Min(a.Length, count - start);
            file.ReadFloats(left, start, a.AsSpan(0, n));
            file.ReadFloats(right, start, b.AsSpan(0, n));
            if (!a.AsSpan(0, n).SequenceEqual(b.AsSpan(0, n)))
            {
                return false;
            }
        }

        return true;
    }

    private static bool IsConstant(string name) =>
        Constants.Any(constant => name.EndsWith("." + constant.Name, StringComparison.Ordinal));

    private static IEnumerable<SafetensorsItem> ConstantsOf(AttentionKind kind, string queryName)
    {
        // "…self_attention.query.weight" names its module.
        string module = queryName[..queryName.IndexOf(".query", StringComparison.Ordinal)];
        int skipped = kind switch
        {
            AttentionKind.Lsh or AttentionKind.Auto => 0,
            AttentionKind.Local => 2,
            _ => Constants.Length,
        };
        return Constants
            .Skip(skipped)
            .Select(constant => SafetensorsItem.FromFloats($"{module}.{constant.Name}", [], new[] { constant.Value }));
    }
}
