using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using System.Numerics;
using ReformerNative.Tensors;

namespace ReformerNative.Cli;

/// <summary>Options that several commands share; each command adds the ones it means.</summary>
internal static class CommonOptions
{
    private static readonly Dictionary<string, Precision> Precisions = new()
    {
        ["f32"] = Tensors.Precision.Float32,
        ["tf32"] = Tensors.Precision.TensorFloat32,
        ["bf16"] = Tensors.Precision.BFloat16,
        ["f16"] = Tensors.Precision.Float16,
    };

    public static Option<bool> Json { get; } =
        new("--json") { Description = "Print JSON, one object a line, for other programs" };

    public static Option<string> Device { get; } = new("--device")
    {
        Description = "Where to compute: cpu, cuda or cuda:N (cuda-on-host: the CUDA kernels on the CPU, for tests)",
        DefaultValueFactory = _ => "cpu",
        HelpName = "cpu|cuda",
    };

    public static Option<int> Threads { get; } = Number(
        "--threads", "Threads of the CPU backend, 0 for all processors; changes no bit of any result", 0, 0);

    public static Option<long> Seed { get; } = Number(
        "--seed", "Seed of parameters, data order, rotations and dropout", 1L, 0L);

    public static Option<bool> AnyBytes { get; } =
        new("--any-bytes") { Description = "Take files, too, that look like no text" };

    public static Option<string?> Precision { get; } = Word(
        "--precision", "What matrix products of a GPU round their inputs to [default: f32]", [.. Precisions.Keys]);

    public static Option<string?> Memory { get; } = MakeMemory();

    /// <summary>What --memory asks for; null without it.</summary>
    public static MemoryLimit? MemoryOf(ParseResult parsed) =>
        parsed.GetValue(Memory) is { } text ? MemoryLimit.Parse(text) : null;

    /// <summary>A context as --device, --threads and --precision ask for.</summary>
    public static ReformerContext Context(ParseResult parsed)
    {
        string name = parsed.GetValue(Device)!;
        if (!Tensors.Device.TryParse(name, out Device device))
        {
            throw new UsageException($"--device: expected cpu, cuda, cuda:N or cuda-on-host, found '{name}'");
        }

        var context = new ReformerContext(device, parsed.GetValue(Threads));
        try
        {
            context.Precision = Precisions[parsed.GetValue(Precision) ?? "f32"];
            return context;
        }
        catch
        {
            context.Dispose();
            throw;
        }
    }

    /// <summary>The word that --precision reads.</summary>
    public static string NameOf(Precision precision) => Precisions.First(pair => pair.Value == precision).Key;

    /// <summary>The seed as the library takes it.</summary>
    public static ulong SeedOf(ParseResult parsed) => (ulong)parsed.GetValue(Seed);

    /// <summary>A number with a lowest value.</summary>
    public static Option<T> Number<T>(string name, string description, T initial, T lowest, string helpName = "N")
        where T : struct, INumber<T> => new(name)
        {
            Description = description,
            DefaultValueFactory = _ => initial,
            CustomParser = result => ParseNumber(result, name, lowest) ?? initial,
            HelpName = helpName,
        };

    /// <summary>A number that need not be given.</summary>
    public static Option<T?> Maybe<T>(string name, string description, T lowest, string helpName = "N")
        where T : struct, INumber<T> => new(name)
        {
            Description = description,
            CustomParser = result => ParseNumber(result, name, lowest),
            HelpName = helpName,
        };

    /// <summary>
    /// Reads a number as every command does, whatever the machine's culture: digits, for numbers that are no integers a
    /// point and an exponent, nothing that groups digits. A comma is thus an error and never a factor of a thousand.
    /// </summary>
    public static bool TryParse<T>(string text, T lowest, out T value)
        where T : struct, INumber<T>
    {
        NumberStyles style = IsInteger<T>()
            ? NumberStyles.AllowLeadingSign
            : NumberStyles.AllowLeadingSign | NumberStyles.AllowDecimalPoint | NumberStyles.AllowExponent;
        return T.TryParse(text, style, CultureInfo.InvariantCulture, out value) && T.IsFinite(value) && value >= lowest;
    }

    /// <summary>One of several words.</summary>
    public static Option<string?> Word(string name, string description, params string[] words)
    {
        var option = new Option<string?>(name) { Description = description, HelpName = string.Join('|', words) };
        option.Validators.Add(result =>
        {
            if (result.Tokens.Count > 0 && !words.Contains(result.Tokens[0].Value))
            {
                result.AddError(
                    $"{name}: expected one of {string.Join(", ", words)}, found '{result.Tokens[0].Value}'");
            }
        });
        return option;
    }

    /// <summary>Whether the user wrote an option.</summary>
    public static bool IsGiven(ParseResult parsed, Option option) => parsed.GetResult(option) is { Implicit: false };

    private static Option<string?> MakeMemory()
    {
        var option = new Option<string?>("--memory")
        {
            Description =
                "Memory that the run may take in all; what is left over keeps activations, for faster steps: 6GiB, "
                    + "6000MB, "
                + "or free for what the device has [default: the least]",
            HelpName = "SIZE|free",
        };
        option.Validators.Add(result =>
        {
            if (result.Tokens is [{ Value: var word }] && MemoryLimit.Parse(word) is null)
            {
                result.AddError($"--memory: expected a size as 6GiB or 6000MB, or free, found '{word}'");
            }
        });
        return option;
    }

    /// <summary>The library's own conversion goes by the culture, and its complaints have another form.</summary>
    private static T? ParseNumber<T>(ArgumentResult result, string name, T lowest)
        where T : struct, INumber<T>
    {
        string word = result.Tokens[0].Value;
        if (TryParse(word, lowest, out T value))
        {
            return value;
        }

        string kind = IsInteger<T>() ? "an integer" : "a number";
        result.AddError(Output.Text($"{name}: expected {kind} from {lowest} up, found '{word}'"));
        return null;
    }

    private static bool IsInteger<T>()
        where T : INumber<T> => T.IsInteger(T.One / (T.One + T.One));
}
