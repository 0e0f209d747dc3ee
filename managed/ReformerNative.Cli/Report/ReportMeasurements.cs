using System.CommandLine;
using System.Diagnostics;
using System.Text.Json;
using System.Text.Json.Nodes;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Cli.Report;

/// <summary>What to measure for a report.</summary>
internal sealed record ReportPlan
{
    public required IReadOnlyList<int> Lengths { get; init; }

    /// <summary>Tokens of a batch: each length is measured with Tokens / length examples.</summary>
    public required int Tokens { get; init; }

    public required int Repeat { get; init; }

    /// <summary>Tokens of the training steps whose memory is planned.</summary>
    public required int MemoryLength { get; init; }

    /// <summary>Depths at which a step is run, in a process of its own, and its memory measured.</summary>
    public required IReadOnlyList<int> MeasuredDepths { get; init; }

    /// <summary>Tokens of the ops and of the step whose share of the ceiling is shown.</summary>
    public required int ShareLength { get; init; }

    public required ulong Seed { get; init; }
}

/// <summary>
/// Measures everything, saying what it does. A product of 2048³ goes before each measurement, because the ceiling
/// moves.
/// </summary>
internal sealed class ReportMeasurements(ReformerContext context, ReportPlan plan, ProgressLine progress)
{
    private const int Heads = 8;
    private const int HeadSize = 64;
    private const int Chunk = 64;
    private const int Width = 512;
    private const int FeedForwardWidth = 2048;
    private const int Vocabulary = 258;
    private const int Layers = 6; // of the step whose share is shown
    private const int ModelRounds = 4;

    private static readonly int[] Rounds = [0, 1, 2, 4, 8]; // 0: dense
    private static readonly int[] Depths = [2, 6, 12, 24, 48];
    private static readonly HashSet<string> OfParameters = ["parameters", "gradients", "optimizer"];

    private static readonly string[] ShareNames =
    [
        "linear, forward", "linear, backward", "feed-forward, forward", "feed-forward, backward", "head and loss",
        "dense attention", "LSH attention", "training step",
    ];

    private int _done;

    private int Count => (Rounds.Length * plan.Lengths.Count) + plan.MeasuredDepths.Count + ShareNames.Length;

    public ReportData Run(string command)
    {
        IReadOnlyList<MemoryPoint> memory = Memory();
        IReadOnlyList<TimePoint> times = Times();
        IReadOnlyList<SharePoint> shares = context.Device.Type == DeviceType.CudaOnHost ? [] : Shares();
        progress.Clear();
        return new ReportData
        {
            Version = NativeRuntime.Version,
            Measured = DateTime.UtcNow,
            Tokens = plan.Tokens,
            MemoryLength = plan.MemoryLength,
            Machine = Machine(),
            Commands = Commands(command),
            Times = times,
            Memory = memory,
            Shares = shares,
        };
    }

    /// <summary>Causal attention, dense (0 rounds) or LSH in the form trax.</summary>
    private static AttentionOptions Options(int rounds, long length) => rounds == 0
        ? AttentionOptions.Full(causal: true)
        : AttentionRun.Lsh(AttentionPreset.Trax, causal: true, length, Chunk, rounds);

    public static string SeriesName(int rounds) => rounds switch
    {
        0 => "dense",
        1 => "LSH, 1 round",
        _ => $"LSH, {rounds} rounds",
    };

    private void Say(string what) => progress.Show($"{++_done} of {Count}: {what}");

    private List<TimePoint> Times()
    {
        var points = new List<TimePoint>();
        foreach (int length in plan.Lengths)
        {
            int batch = plan.Tokens / length;
            foreach (int rounds in Rounds)
            {
                Say($"{SeriesName(rounds)}, {length} tokens, {batch} in a batch");
                double? sgemm = Measure.Sgemm(context);
                using var run = new AttentionRun(
                    context, Options(rounds, length), length, batch, Heads, HeadSize, seed: 0);
                (double forward, double both) = run.Time(context, plan.Repeat);
                points.Add(
                    new TimePoint(
                        SeriesName(rounds), length, batch, forward, both, run.FlopsForward, run.FlopsBackward, sgemm)
                );
                progress.Keep(
                    Output.Text($"{length,7} tokens   {SeriesName(rounds),-13} forward {forward:F4} s   ")
                        + Output.Text($"forward + backward {both:F4} s"));
            }
        }

        return points;
    }

    private List<MemoryPoint> Memory()
    {
        var points = new List<MemoryPoint>();
        foreach (int layers in Depths)
        {
            var options = new TrainingOptions { Length = plan.MemoryLength };
            PlannedMemory planned = PlannedMemory.Make(
                context, () => MemoryPlan.ForTraining(Config(layers, plan.MemoryLength), context, options));
            long activations = planned
                .Plan.Entries.Where(entry => !OfParameters.Contains(entry.Name))
                .Sum(entry => entry.Bytes);
            long? measured = null;
            if (plan.MeasuredDepths.Contains(layers))
            {
                Say($"memory of a step with {layers} layers");
                measured = MeasureStep(layers);
            }

            points.Add(new MemoryPoint(layers, planned.TotalBytes, activations, measured));
            progress.Keep(Output.Text($"{layers,7} layers   planned {Output.Bytes(planned.TotalBytes)}")
                + (measured is long bytes ? $"   measured {Output.Bytes(bytes)}" : ""));
        }

        return points;
    }

    private List<SharePoint> Shares()
    {
        var points = new List<SharePoint>();
        int names = 0;
        void Add(double flops, Func<double> seconds)
        {
            Say(ShareNames[names]);
            double sgemm = Measure.Sgemm(context)!.Value; // the caller leaves out devices without one
            points.Add(new SharePoint(ShareNames[names++], seconds(), flops, sgemm));
            progress.Keep(Output.Text($"{points[^1].Name,-24} {100 * points[^1].Share,5:F1} % of the product"));
        }

        double Median(Action work)
        {
            work();
            return Measure.Median([.. Enumerable.Range(0, plan.Repeat).Select(_ => Measure.Seconds(context, work))]);
        }

        using var workspace = new Workspace(context);
        using var tensors = new TensorPool(context);
        TensorView Normal(params ReadOnlySpan<long> sizes)
        {
            Tensor tensor = tensors.Make(new TensorShape(sizes));
            Measure.Normal(context, tensor, plan.Seed);
            return tensor;
        }

        long n = plan.ShareLength;
        TensorView x = Normal(n, Width);
        TensorView y = Normal(n, Width);
        TensorView gradX = Normal(n, Width);
        TensorView square = Normal(Width, Width);
        TensorView gradSquare = Normal(Width, Width);
        TensorView row = Normal(Width);
        TensorView gradRow = Normal(Width);
        var linear = new Linear { X = x, Weight = square, Bias = row, Y = y };
        Linear linearBackward = linear with { GradY = y, GradX = gradX, GradWeight = gradSquare, GradBias = gradRow };
        double product = 2.0 * n * Width * Width;
        Add(product, () => Median(() => linear.Forward(workspace)));
        Add(2 * product, () => Median(() => linearBackward.Backward(workspace)));

        TensorView w1 = Normal(FeedForwardWidth, Width);
        TensorView w2 = Normal(Width, FeedForwardWidth);
        TensorView b1 = Normal(FeedForwardWidth);
        var feedForward = new FeedForward
        {
            Activation = Activation.GeluTanh,
            X = x,
            W1 = w1,
            B1 = b1,
            W2 = w2,
            B2 = row,
            Y = y,
        };
        FeedForward feedForwardBackward = feedForward with
        {
            GradY = y,
            GradX = gradX,
            GradW1 = Normal(FeedForwardWidth, Width),
            GradB1 = Normal(FeedForwardWidth),
            GradW2 = Normal(Width, FeedForwardWidth),
            GradB2 = gradRow,
        };
        product = 2.0 * n * Width * FeedForwardWidth;
        Add(2 * product, () => Median(() => feedForward.Forward(workspace)));
        // The first product again, then two of each.
        Add(5 * product, () => Median(() => feedForwardBackward.Backward(workspace)));

        TensorView labels = tensors.Make(new TensorShape(n), DType.Int32);
        labels.Zero();
        var head = new HeadLoss
        {
            IgnoreIndex = -100,
            LossScale = 1,
            X = Normal(n, 2 * Width),
            Weight = Normal(Vocabulary, 2 * Width),
            Labels = labels,
            Statistics = tensors.Make(new TensorShape(3), DType.Float64),
            GradX = Normal(n, 2 * Width),
            GradWeight = Normal(Vocabulary, 2 * Width),
        };
        Add(3 * 2.0 * n * 2 * Width * Vocabulary, () => Median(() => head.Backward(workspace)));

        void AddAttention(int rounds)
        {
            using var run = new AttentionRun(
                context, Options(rounds, plan.ShareLength), plan.ShareLength, 1, Heads, HeadSize, seed: 0);
            Add(run.FlopsForward + run.FlopsBackward, () => run.Time(context, plan.Repeat).Both);
        }

        AddAttention(rounds: 0);
        AddAttention(ModelRounds);

        ReformerConfig config = Config(Layers, plan.ShareLength);
        var options = new TrainingOptions
        {
            Seed = plan.Seed,
            Length = plan.ShareLength,
            LearningRate = 1e-4,
            WarmupSteps = 0,
            Schedule = LearningRateSchedule.Constant,
        };
        using ReformerModel model = ReformerModel.Create(config, context, plan.Seed);
        using var trainer = new Trainer(model, new RandomTokens(Vocabulary), options);
        Add(Flops.Step(config, plan.ShareLength, 1), () => Median(() => trainer.RunStep()));
        return points;
    }

    /// <summary>Peak memory of <c>bench step</c> in a process of its own: this one has had other buffers.</summary>
    private long MeasureStep(int layers)
    {
        string program = Environment.ProcessPath!;
        string[] arguments = [.. StepArguments(layers), "--json"];
        if (Path.GetFileNameWithoutExtension(program) == "dotnet")
        {
            arguments = [typeof(Program).Assembly.Location, .. arguments];
        }

        using Process process = Process.Start(
            new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true })!;
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return process.ExitCode == 0
            ? JsonNode.Parse(output)!["peak_bytes"]!.GetValue<long>()
            : throw new InvalidOperationException(
                $"reformer {string.Join(' ', arguments)} failed with exit code {process.ExitCode}");
    }

    private string[] StepArguments(int layers) =>
        ["bench", "step", .. Sizes(layers, plan.MemoryLength), "--repeat", "1", "--threads", $"{context.Threads}"];

    /// <summary>The options of <c>bench step</c> that describe the model.</summary>
    private static string[] Sizes(int layers, int length) =>
        [
            "--layers",
            $"{layers}",
            "--width",
            $"{Width}",
            "--feed-forward",
            $"{FeedForwardWidth}",
            "--heads",
            $"{Heads}",
            "--head-size",
            $"{HeadSize}",
            "--length",
            $"{length}",
            "--chunk",
            $"{Chunk}",
            "--rounds",
            $"{ModelRounds}",
            "--vocabulary",
            $"{Vocabulary}",
            "--pattern",
            "lsh,local",
        ];

    private static ReformerConfig Config(int layers, int length)
    {
        var command = new Command("step");
        foreach (Option option in ModelShape.All)
        {
            command.Add(option);
        }

        return ModelShape.Config(command.Parse(Sizes(layers, length)));
    }

    private List<string> Commands(string command)
    {
        var commands = new List<string> { command };
        string sizes = $"--heads {Heads} --head-size {HeadSize}";
        foreach (int rounds in Rounds)
        {
            string kind = rounds == 0 ? "--dense" : $"--chunk {Chunk} --rounds {rounds}";
            int length = plan.Lengths[^1];
            commands.Add(
                $"reformer bench attention --length {length} --batch {plan.Tokens / length} {sizes} {kind} --causal "
                    + $"--repeat {plan.Repeat}"
            );
        }

        commands.AddRange(plan.MeasuredDepths.Select(layers => $"reformer {string.Join(' ', StepArguments(layers))}"));
        return commands;
    }

    private List<(string Name, string Value)> Machine()
    {
        JsonElement build = JsonDocument.Parse(NativeRuntime.BuildInfo).RootElement;
        JsonElement device = JsonDocument.Parse(NativeRuntime.Describe(context.Device)).RootElement;
        JsonElement blas = build.GetProperty("blas");
        return
        [
            ("device", $"{context.Device}: {device.GetProperty("name").GetString()}"),
            ("threads", Output.Text($"{context.Threads}")),
            ("precision", CommonOptions.NameOf(context.Precision)),
            ("memory", Output.Bytes(device.GetProperty("memory_bytes").GetDouble())),
            ("SIMD", build.GetProperty("simd").GetString()!),
            (
                "BLAS",
                $"{blas.GetProperty("name").GetString()} {blas.GetProperty("version").GetString()}, "
                    + $"{blas.GetProperty("kernel").GetString()}"
            ),
            ("compiler", $"{build.GetProperty("compiler").GetString()}, {build.GetProperty("build").GetString()}"),
            ("runtime", System.Runtime.InteropServices.RuntimeInformation.FrameworkDescription),
            ("system", System.Runtime.InteropServices.RuntimeInformation.OSDescription),
        ];
    }

    /// <summary>Tensors that are freed together.</summary>
    private sealed class TensorPool(ReformerContext context) : IDisposable
    {
        private readonly List<Tensor> _tensors = [];

        public Tensor Make(TensorShape shape, DType type = DType.Float32)
        {
            var tensor = new Tensor(context, shape, type);
            _tensors.Add(tensor);
            return tensor;
        }

        public void Dispose() => _tensors.ForEach(tensor => tensor.Dispose());
    }
}
