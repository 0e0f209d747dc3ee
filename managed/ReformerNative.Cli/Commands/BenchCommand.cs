using System.CommandLine;
using System.Text.Json.Nodes;
using ReformerNative.Cli.Report;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Cli.Commands;

/// <summary><c>reformer bench</c>.</summary>
internal static class BenchCommand
{
    private static readonly Option<int> Length = CommonOptions.Number("--length", "Tokens", 4096, 1);
    private static readonly Option<int> Batch = CommonOptions.Number("--batch", "Examples", 1, 1);
    private static readonly Option<int> Heads = CommonOptions.Number("--heads", "Heads", 8, 1);
    private static readonly Option<int> HeadSize = CommonOptions.Number("--head-size", "Width of a head", 64, 1);
    private static readonly Option<int> Chunk = CommonOptions.Number("--chunk", "Tokens of a chunk", 64, 1);
    private static readonly Option<int> Rounds = CommonOptions.Number("--rounds", "Hash rounds", 4, 1);
    private static readonly Option<bool> Dense = new("--dense")
    {
        Description = "Attention over all tokens instead of LSH",
    };
    private static readonly Option<bool> Causal = new("--causal") { Description = "No query sees a later position" };
    private static readonly Option<string?> Form = CommonOptions.Word(
        "--attention", "Form of LSH attention [default: trax]", [.. AttentionPreset.All.Select(preset => preset.Name)]);

    private static readonly Option<int> Tokens = CommonOptions.Number(
        "--tokens", "Tokens to generate after each prompt", 64, 1);
    private static readonly Option<int> Repeat = CommonOptions.Number(
        "--repeat", "Runs, of which the median is reported", 5, 1);

    private const int ShortPrompt = 1024;

    public static Command Create()
    {
        var attention = new Command("attention", "Time and memory of one attention, forward and backward.")
        {
            Length, Batch, Heads, HeadSize, Chunk, Rounds, Dense, Causal, Form, Repeat, CommonOptions.Seed,
            CommonOptions.Device, CommonOptions.Precision, CommonOptions.Threads, CommonOptions.Json,
        };
        attention.SetAction(RunAttention);
        var step = new Command(
            "step", "Time and memory of one training step, and how exactly its backward pass recovers the streams.")
        {
            Repeat, CommonOptions.Seed, CommonOptions.Memory, CommonOptions.Device, CommonOptions.Precision,
            CommonOptions.Threads, CommonOptions.Json,
        };
        foreach (Option option in ModelShape.All)
        {
            step.Add(option);
        }

        step.SetAction(RunStep);
        var generate = new Command(
            "generate",
            "Time of a prompt of --length tokens and of tokens generated after it and after a short one; LSH is strict "
                + "by default."
        )
        {
            Tokens, CommonOptions.Seed, CommonOptions.Device, CommonOptions.Threads, CommonOptions.Json,
        };
        foreach (Option option in ModelShape.All.Where(option => option != ModelShape.Batch))
        {
            generate.Add(option);
        }

        generate.SetAction(RunGenerate);
        return new Command("bench", "Measure one op, one training step or generation.")
        {
            attention,
            step,
            generate,
            ReportCommand.Create(),
        };
    }

    private static int RunAttention(ParseResult parsed)
    {
        long length = parsed.GetValue(Length);
        long batch = parsed.GetValue(Batch);
        long heads = parsed.GetValue(Heads);
        long headSize = parsed.GetValue(HeadSize);
        ulong seed = CommonOptions.SeedOf(parsed);
        bool dense = parsed.GetValue(Dense);
        using ReformerContext context = CommonOptions.Context(parsed);
        AttentionOptions options = Failure.Usage(() => Options(parsed, length, dense));
        using var run = new AttentionRun(context, options, length, batch, heads, headSize, seed);
        (double forwardSeconds, double bothSeconds) = run.Time(context, parsed.GetValue(Repeat));
        long peak = new MemoryUse(context).PeakBytes; // before the product below, which needs memory of its own
        double flopsForward = run.FlopsForward, flopsBackward = run.FlopsBackward;
        double? sgemm = Measure.Sgemm(context);
        if (parsed.GetValue(CommonOptions.Json))
        {
            Output.Json(new JsonObject
            {
                ["forward_seconds"] = forwardSeconds,
                ["forward_backward_seconds"] = bothSeconds,
                ["flops_forward"] = flopsForward,
                ["flops_backward"] = flopsBackward,
                ["sgemm_gflops"] = sgemm,
                ["peak_bytes"] = peak,
            });
            return ExitCode.Done;
        }

        string Line(double flops, double seconds) =>
            Output.Text($"{seconds:F4} s   ") + Measure.Rate(flops, seconds, sgemm);
        Console.WriteLine($"forward             {Line(flopsForward, forwardSeconds)}");
        Console.WriteLine($"forward + backward  {Line(flopsForward + flopsBackward, bothSeconds)}");
        Console.WriteLine($"2048^3 product      {Measure.SgemmLine(context, sgemm)}");
        Console.WriteLine($"peak memory         {Output.Bytes(peak)}");
        return ExitCode.Done;
    }

    private static AttentionOptions Options(ParseResult parsed, long length, bool dense)
    {
        bool causal = parsed.GetValue(Causal);
        if (dense)
        {
            return AttentionOptions.Full(causal);
        }

        return AttentionRun.Lsh(
            AttentionPreset.FromName(parsed.GetValue(Form) ?? "trax"), causal, length, parsed.GetValue(Chunk),
            parsed.GetValue(Rounds));
    }

    private static int RunStep(ParseResult parsed)
    {
        ReformerConfig config = ModelShape.Config(parsed);
        int length = parsed.GetValue(ModelShape.Length);
        int repeat = parsed.GetValue(Repeat);
        bool json = parsed.GetValue(CommonOptions.Json);
        ulong seed = CommonOptions.SeedOf(parsed);
        var options = new TrainingOptions
        {
            Seed = seed,
            Steps = repeat,
            BatchSize = parsed.GetValue(ModelShape.Batch),
            Length = length,
            LearningRate = 1e-4,
            WarmupSteps = 0,
            Schedule = LearningRateSchedule.Constant,
        };
        using ReformerContext context = CommonOptions.Context(parsed);
        (PlannedMemory plan, options) = PlannedMemory.ForTraining(
            config, context, options, CommonOptions.MemoryOf(parsed));
        IReadOnlyList<KeepActivations> kept = plan.Plan.Kept;
        var progress = new ProgressLine();
        progress.Show($"planned {Output.Bytes(plan.TotalBytes)}; making the model");
        using ReformerModel model = ReformerModel.Create(config, context, seed);
        var source = new RandomTokens(config.VocabSize);
        using var trainer = new Trainer(model, source, options);

        // The first pass is not timed: it makes the buffers, and its backward part shows how well the streams are
        // recovered.
        progress.Show("first pass");
        var batch = new TokenBatch(options.BatchSize, length);
        source.Fill(batch, DataSplit.HeldOut, seed, 0);
        model.ForwardBackward(
            batch,
            new RunOptions
            {
                Seed = seed,
                Step = uint.MaxValue,
                Dropout = true,
                Keep = trainer.Kept,
            }
        );
        Reconstruction reconstruction = model.MeasureReconstruction();
        var seconds = new List<double>();
        for (int run = 0; run < repeat; run++)
        {
            progress.Show(Output.Text($"step {run + 1} of {repeat}"));
            seconds.Add(trainer.RunStep().Seconds);
        }

        long peak = new MemoryUse(context).PeakBytes; // before the product below, which needs memory of its own
        double median = Measure.Median(seconds);
        double flops = Flops.Step(config, length, options.BatchSize, kept);
        double? sgemm = Measure.Sgemm(context);
        double tokensPerSecond = (double)length * options.BatchSize / median;
        progress.Clear();
        if (json)
        {
            Output.Json(new JsonObject
            {
                ["seconds"] = median,
                ["tokens_per_second"] = tokensPerSecond,
                ["flops"] = flops,
                ["sgemm_gflops"] = sgemm,
                ["peak_bytes"] = peak,
                ["planned_bytes"] = plan.TotalBytes,
                ["kept"] = Output.Kept(kept),
                ["reconstruction"] = new JsonObject
                {
                    ["bit_identical"] = reconstruction.BitIdentical,
                    ["max_abs"] = Output.Number(reconstruction.MaxAbs),
                },
            });
            return ExitCode.Done;
        }

        string recovered = reconstruction.BitIdentical
            ? "the same bits"
            : Output.Text($"up to {reconstruction.MaxAbs:E1} apart");
        Console.WriteLine(Output.Text($"parameters       {model.ParameterCount:N0}"));
        Console.WriteLine(Output.Text($"step             {median:F3} s, {tokensPerSecond:N0} tokens/s, ")
            + Measure.Rate(flops, median, sgemm));
        Console.WriteLine($"2048^3 product   {Measure.SgemmLine(context, sgemm)}");
        Console.WriteLine($"peak memory      {Output.Bytes(peak)}, planned {Output.Bytes(plan.TotalBytes)}");
        Console.WriteLine($"layers keep      {Output.KeptText(kept)}");
        Console.WriteLine($"streams          {recovered} after the backward pass");
        return ExitCode.Done;
    }

    private static int RunGenerate(ParseResult parsed)
    {
        int length = parsed.GetValue(ModelShape.Length);
        int tokens = parsed.GetValue(Tokens);
        ulong seed = CommonOptions.SeedOf(parsed);
        ReformerConfig config = ModelShape.Config(parsed, tokens, "strict");
        using ReformerContext context = CommonOptions.Context(parsed);
        var progress = new ProgressLine();
        progress.Show("making the model");
        using ReformerModel model = ReformerModel.Create(config, context, seed);
        model.ResolveBuckets(length);
        using var generator = new Generator(model);
        var options = new GenerationOptions { Count = tokens, Temperature = 0, Seed = seed, Cache = CacheUse.On };
        var batch = new TokenBatch(1, length);
        new RandomTokens(config.VocabSize).Fill(batch, DataSplit.HeldOut, seed, 0);
        int[] prompt = batch.Ids.ToArray();
        var weights = new WeightReading(model);
        int early = Math.Min(length, ShortPrompt);
        Generated(early); // not timed: makes buffers
        (double _, double earlySeconds) = Generated(early);
        (double prefill, double lateSeconds) = Generated(length);
        long peak = new MemoryUse(context).PeakBytes;
        progress.Clear();
        double reading = Measure.Median(weights.Seconds);
        double share = reading / lateSeconds;
        if (parsed.GetValue(CommonOptions.Json))
        {
            Output.Json(new JsonObject
            {
                ["prefill_tokens_per_second"] = length / prefill,
                ["early_position"] = early,
                ["early_seconds_per_token"] = earlySeconds,
                ["late_position"] = length,
                ["late_seconds_per_token"] = lateSeconds,
                ["tokens_per_second"] = 1 / lateSeconds,
                ["weight_bytes"] = weights.Bytes,
                ["read_bytes_per_second"] = weights.Bytes / reading,
                ["read_share"] = share,
                ["peak_bytes"] = peak,
            });
            return ExitCode.Done;
        }

        Console.WriteLine(Output.Text($"parameters       {model.ParameterCount:N0}, {Output.Bytes(weights.Bytes)}"));
        Console.WriteLine(Output.Text($"prompt           {prefill:F3} s, {length / prefill:N0} tokens/s"));
        Console.WriteLine(Output.Text($"token {early + 1,-10} {1000 * earlySeconds:F3} ms"));
        Console.WriteLine(
            Output.Text($"token {length + 1,-10} {1000 * lateSeconds:F3} ms, {1 / lateSeconds:N0} tokens/s, ")
                + Output.Text($"{100 * share:F1} % of the rate at which the weights can be read")
        );
        Console.WriteLine(
            Output.Text($"reading          {1000 * reading:F3} ms, {weights.Bytes / reading / 1e9:F1} GB/s"));
        Console.WriteLine($"peak memory      {Output.Bytes(peak)}");
        return ExitCode.Done;

        // Seconds of the prompt with the first token, and the median of those of the others, each beside one reading of
        // the weights.
        (double First, double Next) Generated(int count)
        {
            progress.Show(Output.Text($"prompt of {count} tokens, then {tokens} more"));
            var seconds = new List<double>();
            using IEnumerator<int> ids = generator.Generate(prompt[..count], options).GetEnumerator();
            double first = Measure.Seconds(context, () => ids.MoveNext());
            for (int i = 1; i < tokens; i++)
            {
                seconds.Add(Measure.Seconds(context, () => ids.MoveNext()));
                weights.Read();
            }

            return (first, seconds.Count > 0 ? Measure.Median(seconds) : first);
        }
    }
}
