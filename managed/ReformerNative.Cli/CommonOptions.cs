using System.CommandLine;
using System.Globalization;
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

    public static Option<int> Threads { get; } = new("--threads")
    {
        Description = "Threads of the CPU backend, 0 for all processors; changes no bit of any result",
        HelpName = "N",
    };

    public static Option<long> Seed { get; } =
        new("--seed")
        {
            Description = "Seed of parameters, data order, rotations and dropout",
            DefaultValueFactory = _ => 1,
            HelpName = "N",
        };

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

        int threads = parsed.GetValue(Threads);
        if (threads < 0)
        {
            throw new UsageException($"--threads: expected an integer from 0 up, found {threads}");
        }

        var context = new ReformerContext(device, threads);
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
    public static ulong SeedOf(ParseResult parsed)
    {
        long seed = parsed.GetValue(Seed);
        return seed >= 0
            ? (ulong)seed
            : throw new UsageException($"--seed: expected an integer from 0 up, found {seed}");
    }

    /// <summary>An integer option with a lowest value.</summary>
    public static Option<T> Number<T>(string name, string description, T initial, T lowest, string helpName = "N")
        where T : struct, System.Numerics.INumber<T>
    {
        var option = new Option<T>(name)
        {
            Description = description,
            DefaultValueFactory = _ => initial,
            HelpName = helpName,
        };
        AtLeast(option, lowest);
        return option;
    }

    /// <summary>A number that need not be given.</summary>
    public static Option<T?> Maybe<T>(string name, string description, T lowest, string helpName = "N")
        where T : struct, System.Numerics.INumber<T>
    {
        var option = new Option<T?>(name) { Description = description, HelpName = helpName };
        AtLeast(option, lowest);
        return option;
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

    /// <summary>The validator reads the word itself, so that every complaint has the same form.</summary>
    private static void AtLeast<T>(Option option, T lowest)
        where T : struct, System.Numerics.INumber<T> => option.Validators.Add(result =>
        {
            if (result.Tokens is [{ Value: var word }]
                && !(T.TryParse(word, CultureInfo.InvariantCulture, out T value) && value >= lowest))
            {
                string kind = T.IsInteger(T.One / (T.One + T.One)) ? "an integer" : "a number";
                result.AddError(Output.Text($"{option.Name}: expected {kind} from {lowest} up, found '{word}'"));
            }
        });
}
