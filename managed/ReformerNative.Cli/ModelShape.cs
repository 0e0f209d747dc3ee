using System.CommandLine;
using ReformerNative.Model;
using ReformerNative.Ops;

namespace ReformerNative.Cli;

/// <summary>Sizes of a model as options, for measuring and planning without a configuration file.</summary>
internal static class ModelShape
{
    private static readonly Option<int> Layers = CommonOptions.Number("--layers", "Layers", 6, 1);
    private static readonly Option<int> Width = CommonOptions.Number(
        "--width", "E, width of each residual stream", 512, 1);
    private static readonly Option<int> FeedForward = CommonOptions.Number(
        "--feed-forward", "F, width of the feed-forward", 2048, 1);
    private static readonly Option<int> Heads = CommonOptions.Number("--heads", "H, attention heads", 8, 1);
    private static readonly Option<int> HeadSize = CommonOptions.Number("--head-size", "D, width of a head", 64, 1);
    private static readonly Option<int> Chunk = CommonOptions.Number(
        "--chunk", "C, tokens of a chunk of LSH and local layers", 64, 1);
    private static readonly Option<int> Rounds = CommonOptions.Number("--rounds", "R, hash rounds", 4, 1);
    private static readonly Option<int> Vocabulary = CommonOptions.Number("--vocabulary", "V, number of ids", 258, 1);
    private static readonly Option<double> Dropout = CommonOptions.Number(
        "--dropout", "Dropout at every site", 0.0, 0.0, "P");
    private static readonly Option<string?> Residual = CommonOptions.Word(
        "--residual", "How streams are added [default: exact]", "exact", "float");
    private static readonly Option<string> Pattern = new("--pattern")
    {
        Description =
            "Kinds of the layers, repeated as often as needed: lsh, local, full, auto (lsh or full by length)",
        DefaultValueFactory = _ => "lsh,local",
        HelpName = "KIND,...",
    };

    private static readonly Option<string?> Attention = CommonOptions.Word(
        "--attention", "Form of LSH attention [default: trax]", [.. AttentionPreset.All.Select(preset => preset.Name)]);

    /// <summary>L, tokens of an example.</summary>
    public static Option<int> Length { get; } = CommonOptions.Number("--length", "L, tokens of an example", 4096, 2);

    /// <summary>B, examples of a batch.</summary>
    public static Option<int> Batch { get; } = CommonOptions.Number("--batch", "B, examples of a batch", 1, 1);

    /// <summary>All of them.</summary>
    public static IReadOnlyList<Option> All { get; } =
    [
        Layers, Width, FeedForward, Heads, HeadSize, Length, Batch, Chunk, Rounds, Vocabulary, Pattern, Residual,
        Dropout, Attention,
    ];

    /// <summary>The configuration of the options' initial values with another number of hash rounds.</summary>
    public static ReformerConfig Default(int rounds)
    {
        var command = new Command("model");
        foreach (Option option in All)
        {
            command.Add(option);
        }

        return Config(command.Parse([Rounds.Name, Output.Text($"{rounds}")]));
    }

    /// <summary>
    /// The configuration that the options describe: causal, with axial positions for exactly enough tokens.
    /// </summary>
    /// <param name="parsed">The options.</param>
    /// <param name="more">Tokens beyond --length.</param>
    /// <param name="form">Form of LSH attention where --attention is not given.</param>
    public static ReformerConfig Config(ParseResult parsed, int more = 0, string form = "trax")
    {
        int length = checked(parsed.GetValue(Length) + more);
        int width = parsed.GetValue(Width);
        int chunk = parsed.GetValue(Chunk);
        double dropout = parsed.GetValue(Dropout);
        string[] kinds = parsed.GetValue(Pattern)!.Split(',', StringSplitOptions.TrimEntries);
        int rows = (int)Math.Ceiling(Math.Sqrt(length));
        int part = Math.Max(1, width / 4);
        var config = new ReformerConfig
        {
            AttentionHeadSize = parsed.GetValue(HeadSize),
            AttnLayers =
            [
                .. Enumerable.Range(0, parsed.GetValue(Layers)).Select(layer => Kind(kinds[layer % kinds.Length])),
            ],
            AxialPosShape = [rows, (int)(((long)length + rows - 1) / rows)],
            AxialPosEmbdsDim = [part, width - part],
            FeedForwardSize = parsed.GetValue(FeedForward),
            HiddenDropoutProb = dropout,
            HiddenSize = width,
            IsDecoder = true,
            LayerNormEps = 1e-6,
            LocalAttentionProbsDropoutProb = dropout,
            LocalAttnChunkLength = chunk,
            LshAttentionProbsDropoutProb = dropout,
            LshAttnChunkLength = chunk,
            LshPreset = AttentionPreset.FromName(parsed.GetValue(Attention) ?? form),
            MaxPositionEmbeddings = length,
            NumAttentionHeads = parsed.GetValue(Heads),
            NumHashes = parsed.GetValue(Rounds),
            Residual = parsed.GetValue(Residual) == "float" ? ResidualMode.Float : ResidualMode.Exact,
            VocabSize = parsed.GetValue(Vocabulary),
            PadTokenId = 0,
            EosTokenId = null,
        };
        return Failure.Usage(() =>
        {
            config.Validate();
            return config;
        });
    }

    private static AttentionKind Kind(string name) => name switch
    {
        "lsh" => AttentionKind.Lsh,
        "local" => AttentionKind.Local,
        "full" => AttentionKind.Full,
        "auto" => AttentionKind.Auto,
        _ => throw new UsageException($"--pattern: expected lsh, local, full or auto, found '{name}'"),
    };
}
