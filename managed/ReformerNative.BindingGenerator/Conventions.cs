namespace ReformerNative.BindingGenerator;

/// <summary>What the C# of an op needs and the header does not say.</summary>
internal static class Conventions
{
    /// <summary>Structs whose C# is written by hand, because it has rules of its own.</summary>
    public static readonly HashSet<string> WrittenByHand =
        ["rfn_attention_options", "rfn_global_norm", "rfn_adamw", "rfn_adafactor"];

    /// <summary>C# names that are not the words of the C name.</summary>
    public static readonly Dictionary<string, string> TypeNames = new() { ["rfn_adamw"] = "AdamW" };

    /// <summary>The enumeration of a field whose comment names the macros with this prefix.</summary>
    public static readonly Dictionary<string, string> Enumerations = new()
    {
        ["RFN_ACTIVATION"] = "Activation",
        ["RFN_COMBINE"] = "StreamCombination",
        ["RFN_POSITIONS"] = "PositionEncoding",
        ["RFN_RESIDUAL"] = "ResidualMode",
        ["RFN_SITE"] = "RandomSite",
    };

    /// <summary>Fields that no property stands for, and what fills them.</summary>
    public static readonly Dictionary<string, string> Filled = new() { ["rfn_embedding.axes"] = "Position.Count" };

    /// <summary>What fields say that mean the same in every op and have no comment of their own.</summary>
    public static readonly Dictionary<string, string> CommonFields = new()
    {
        ["layer"] = "index of the layer in its stack: part of the key of random numbers",
        ["seed"] = "seed of the run",
        ["step"] = "training step; what a step draws is the same in both passes",
    };

    /// <summary>Element types as C# names them.</summary>
    public static readonly Dictionary<string, string> ElementTypes = new()
    {
        ["F32"] = "Float32",
        ["F64"] = "Float64",
        ["I32"] = "Int32",
        ["I64"] = "Int64",
        ["U8"] = "UInt8",
        ["BF16"] = "BFloat16",
        ["F16"] = "Float16",
        ["float"] = "Float32",
        ["double"] = "Float64",
        ["int32_t"] = "Int32",
        ["int64_t"] = "Int64",
    };
}
