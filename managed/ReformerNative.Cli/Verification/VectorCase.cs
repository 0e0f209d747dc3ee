using System.Text.Json;
using System.Text.Json.Nodes;
using ReformerNative.Checkpoints;
using ReformerNative.Tensors;

namespace ReformerNative.Cli.Verification;

/// <summary>One compared tensor.</summary>
/// <param name="Name">Its name in the file, without the prefix of the float64 truth.</param>
/// <param name="Relative">
/// Largest difference over largest magnitude, or distance over norm where products round their inputs; null when
/// nothing could be compared.
/// </param>
/// <param name="Limit">The largest that passes.</param>
internal readonly record struct TensorVerdict(string Name, double? Relative, double Limit)
{
    /// <summary>A difference that is not a number does not pass.</summary>
    public bool Passed => Relative is double relative && relative <= Limit;
}

/// <summary>What became of one directory.</summary>
internal sealed record CaseVerdict(string Case, IReadOnlyList<TensorVerdict> Tensors, string? Error = null)
{
    public bool Passed => Error is null && Tensors.Count > 0 && Tensors.All(tensor => tensor.Passed);
}

/// <summary>
/// A directory of vectors: runs it with the recorded rotations and compares every result that its io.safetensors holds.
/// </summary>
internal static class VectorCase
{
    public const string IoName = "io.safetensors";

    private const string Truth = "f64.";
    private const string CaseName = "case.json";
    private const int MaximumBytes = 1 << 20;

    /// <summary>
    /// Limits against float64 truth, and against float32 results, which can have an effect of their own
    /// (tests/vectors/README.md).
    /// </summary>
    private const double Exact = 0;
    private const double EmbeddingsAndLoss = 1e-6;
    private const double Activations = 1e-5;
    private const double Gradients = 2e-5;
    private const double LossOfFloat32 = 1e-5;
    private const double ActivationsOfFloat32 = 5e-3;
    private const double GradientsOfFloat32 = 5e-2;

    /// <summary>
    /// Limits of distances where products round their inputs to so many bits, and of the share of hashes that differ. A
    /// hash differs where two rotations of a query are about equal, and its token then sees other tokens; a ReLU at
    /// about 0 opens or closes. So a few differences are large, and the largest one says nothing.
    /// </summary>
    private static readonly (double Share, double Loss, double Activations, double Gradients) TenBits = (
        5e-3, 5e-4, 0.1, 0.3);
    private static readonly (double Share, double Loss, double Activations, double Gradients) SevenBits = (
        2e-2, 3e-3, 0.2, 0.4);

    /// <summary>Runs and compares.</summary>
    /// <param name="directory">The directory.</param>
    /// <param name="context">Where to run.</param>
    /// <param name="limitScale">Factor of every limit.</param>
    /// <param name="write">A safetensors file for what was computed; null for none.</param>
    public static CaseVerdict Run(string directory, ReformerContext context, double limitScale, string? write)
    {
        JsonObject description = Describe(directory);
        string name = Text(description["case"]) ?? Path.GetFileName(Path.GetFullPath(directory).TrimEnd('/'));
        using SafetensorsReader io = SafetensorsReader.Open(Path.Combine(directory, IoName));
        bool model = File.Exists(Path.Combine(directory, CheckpointFiles.Config));
        Dictionary<string, ComputedTensor> computed = model
            ? ModelCase.Compute(directory, io, context)
            : AttentionCase.Compute(directory, description, io, context);
        string[] inputs = model ? ModelCase.Inputs : AttentionCase.Inputs;
        var verdicts = new List<TensorVerdict>();
        Precision precision = context.Precision;
        foreach (SafetensorsEntry entry in io.Entries)
        {
            if (entry.Name.StartsWith(Truth, StringComparison.Ordinal) || inputs.Contains(entry.Name))
            {
                continue;
            }

            bool truth = io.TryGet(Truth + entry.Name, out SafetensorsEntry? exact);
            ComputedTensor? found = computed.GetValueOrDefault(entry.Name);
            double? relative =
                precision == Precision.Float32
                    ? found?.RelativeDifference(io, exact ?? entry)
                    : found?.RelativeDistance(io, exact ?? entry);
            double limit =
                precision == Precision.Float32 ? Limit(entry.Name, truth) : CoarseLimit(entry.Name, precision);
            verdicts.Add(new TensorVerdict(entry.Name, relative, limit * limitScale));
        }

        if (write is not null)
        {
            SafetensorsWriter.Write(write, [.. computed.Select(pair => pair.Value.ToItem(pair.Key))]);
        }

        return new CaseVerdict(name, verdicts);
    }

    /// <summary>The directories that a path means: itself, or all below it that hold vectors.</summary>
    public static IReadOnlyList<string> Find(string path)
    {
        if (File.Exists(Path.Combine(path, IoName)))
        {
            return [path];
        }

        if (!Directory.Exists(path))
        {
            throw new DirectoryNotFoundException(
                $"{path}: expected a directory with {IoName}, found {(File.Exists(path) ? "a file" : "nothing")}");
        }

        string[] found =
        [
            .. Directory
                .EnumerateFiles(path, IoName, SearchOption.AllDirectories)
                .Select(file => Path.GetDirectoryName(file)!)
                .Order(StringComparer.Ordinal),
        ];
        return found.Length > 0
            ? found
            : throw new FileNotFoundException($"{path}: expected {IoName} in it or below, found none");
    }

    /// <summary>A description's string; null when it is something else.</summary>
    private static string? Text(JsonNode? node) =>
        node?.GetValueKind() == JsonValueKind.String ? node.GetValue<string>() : null;

    private static JsonObject Describe(string directory)
    {
        string path = Path.Combine(directory, CaseName);
        if (!File.Exists(path))
        {
            return [];
        }

        string text = RegularFile.ReadText(path, "the description of a case", MaximumBytes);
        try
        {
            return JsonNode.Parse(text) as JsonObject
                ?? throw new ReformerFormatException(path, "expected a JSON object, found another value");
        }
        catch (JsonException error)
        {
            throw new ReformerFormatException(path, $"expected JSON: {error.Message}", error);
        }
    }

    private static double CoarseLimit(string name, Precision precision)
    {
        (double share, double loss, double activations, double gradients) =
            precision == Precision.BFloat16 ? SevenBits : TenBits;
        return name switch
        {
            _ when name.StartsWith("rotations", StringComparison.Ordinal) => Exact,
            _ when name.StartsWith("buckets", StringComparison.Ordinal) => share,
            _ when name.StartsWith("grad", StringComparison.Ordinal) => gradients,
            "embeddings" => EmbeddingsAndLoss,
            "loss" => loss,
            _ => activations,
        };
    }

    private static double Limit(string name, bool truth) =>
        name switch
        {
            _ when name.StartsWith("rotations", StringComparison.Ordinal)
                    || name.StartsWith("buckets", StringComparison.Ordinal) => Exact,
            "embeddings" => EmbeddingsAndLoss,
            "loss" => truth ? EmbeddingsAndLoss : LossOfFloat32,
            _ when name.StartsWith("grad", StringComparison.Ordinal) => truth ? Gradients : GradientsOfFloat32,
            _ => truth ? Activations : ActivationsOfFloat32,
        };
}
