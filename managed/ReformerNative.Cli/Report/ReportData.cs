using System.Text.Json.Nodes;

namespace ReformerNative.Cli.Report;

/// <summary>
/// Time of one attention, and the product of 2048³ that was measured just before it (null where there is none).
/// </summary>
internal sealed record TimePoint(
    string Series, int Length, int Batch, double ForwardSeconds, double ForwardBackwardSeconds, double FlopsForward,
    double FlopsBackward, double? Sgemm)
{
    public JsonObject ToJson() => new()
    {
        ["series"] = Series,
        ["length"] = Length,
        ["batch"] = Batch,
        ["forward_seconds"] = ForwardSeconds,
        ["forward_backward_seconds"] = ForwardBackwardSeconds,
        ["flops_forward"] = FlopsForward,
        ["flops_backward"] = FlopsBackward,
        ["sgemm_gflops"] = Sgemm,
    };
}

/// <summary>
/// Memory of a training step, in bytes: planned, of it what does not belong to parameters, and the peak of a real step
/// if one ran.
/// </summary>
internal sealed record MemoryPoint(int Layers, long Planned, long Activations, long? Measured)
{
    public JsonObject ToJson() => new()
    {
        ["layers"] = Layers,
        ["planned_bytes"] = Planned,
        ["activation_bytes"] = Activations,
        ["peak_bytes"] = Measured,
    };
}

/// <summary>Time of an op that consists of products, and the product of 2048³ measured just before it.</summary>
internal sealed record SharePoint(string Name, double Seconds, double Flops, double Sgemm)
{
    /// <summary>FLOP/s over those of the product.</summary>
    public double Share => Flops / Seconds / 1e9 / Sgemm;

    public JsonObject ToJson() =>
        new()
        {
            ["op"] = Name,
            ["seconds"] = Seconds,
            ["flops"] = Flops,
            ["sgemm_gflops"] = Sgemm,
            ["share"] = Share,
        };
}

/// <summary>All that a report shows.</summary>
internal sealed record ReportData
{
    public required string Version { get; init; }

    public required DateTime Measured { get; init; }

    /// <summary>Tokens of a batch in the charts of time.</summary>
    public required int Tokens { get; init; }

    /// <summary>Tokens of the training steps whose memory is shown.</summary>
    public required int MemoryLength { get; init; }

    public required IReadOnlyList<(string Name, string Value)> Machine { get; init; }

    public required IReadOnlyList<string> Commands { get; init; }

    public required IReadOnlyList<TimePoint> Times { get; init; }

    public required IReadOnlyList<MemoryPoint> Memory { get; init; }

    public required IReadOnlyList<SharePoint> Shares { get; init; }

    public JsonObject ToJson() => new()
    {
        ["version"] = Version,
        ["measured"] = Measured.ToString("u"),
        ["machine"] = new JsonObject(Machine.Select(item => KeyValuePair.Create(item.Name, (JsonNode?)item.Value))),
        ["tokens"] = Tokens,
        ["attention"] = new JsonArray([.. Times.Select(point => point.ToJson())]),
        ["memory_length"] = MemoryLength,
        ["memory"] = new JsonArray([.. Memory.Select(point => point.ToJson())]),
        ["shares"] = new JsonArray([.. Shares.Select(point => point.ToJson())]),
        ["commands"] = new JsonArray([.. Commands.Select(command => (JsonNode)command)]),
    };
}
