using System.Diagnostics.CodeAnalysis;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace ReformerNative.Model;

/// <summary>A value of <c>config.json</c>, read as what its key expects.</summary>
internal readonly struct ConfigValue(JsonNode? node)
{
    public bool IsNull => node is null;

    public int Int() =>
        node is JsonValue value && value.GetValueKind() == JsonValueKind.Number && value.TryGetValue(out int number)
            ? number
            : throw new ConfigValueException("a 32-bit integer", Found);

    public double Double() =>
        node is JsonValue value
        && value.GetValueKind() == JsonValueKind.Number
        && value.TryGetValue(out double number)
            ? number
            : throw new ConfigValueException("a number", Found);

    public bool Bool() => node?.GetValueKind() switch
    {
        JsonValueKind.True => true,
        JsonValueKind.False => false,
        _ => throw new ConfigValueException("true or false", Found),
    };

    public string Text() => node?.GetValueKind() == JsonValueKind.String
        ? node.GetValue<string>()
        : throw new ConfigValueException("a string", Found);

    public int OneOf(string[] names)
    {
        string expected = names.Length == 1 ? names[0] : $"one of {string.Join(", ", names)}";
        int index =
            node?.GetValueKind() == JsonValueKind.String
                ? Array.IndexOf(names, node.GetValue<string>())
                : -1;
        return index >= 0 ? index : throw new ConfigValueException(expected, Found);
    }

    public IReadOnlyList<T> List<T>(Func<ConfigValue, T> item) => node is JsonArray array
        ? [.. array.Select(element => item(new ConfigValue(element)))]
        : throw new ConfigValueException("a list", Found);

    public IReadOnlyList<T> ListOrOne<T>(Func<ConfigValue, T> item) =>
        node is JsonArray ? List(item) : [item(this)];

    public string Json => node?.ToJsonString() ?? "null";

    private string Found => Json is { Length: > 60 } text ? text[..60] + "..." : Json;
}

/// <summary>A value is not what its key expects: the key is not known here.</summary>
[SuppressMessage("Design", "CA1032", Justification = "ConfigFile catches it.")]
[SuppressMessage("Design", "CA1064", Justification = "ConfigFile catches it.")]
internal sealed class ConfigValueException(string expected, object found)
    : Exception(FormattableString.Invariant($"expected {expected}, found {found}"));
