using System.Diagnostics;
using System.Text.Json.Nodes;
using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Cli;

/// <summary>
/// A training run at a prompt: runs the trainer, prints what happens, saves on Ctrl+C, ends with a sample.
/// </summary>
internal sealed class TrainingSession(
    Trainer trainer, IBatchSource source, RunDescription run, PlannedMemory? plan, string? resumed,
    IReadOnlyList<int>? chosenBuckets, MetricsFile metrics, long logEvery, bool json) : IProgress<TrainingStep>
{
    private const int PromptBytes = 64;

    /// <summary>How long a stopped run may measure: less than systems wait that shut down.</summary>
    private static readonly TimeSpan MeasurementOfAStoppedRun = TimeSpan.FromSeconds(10);

    private readonly ProgressLine _line = new();
    private readonly MemoryUse _memory = new(trainer.Model.Context);
    private readonly StepAverages _averages = new(trainer.Options, run.Data.Task, new MemoryUse(trainer.Model.Context));

    private bool _described;
    private long _firstStep; // of this process
    private double _secondsToFirstStep; // from the start of the process to the end of that step; 0 once it was printed

    private DataDescription Data => run.Data;

    private string Directory => trainer.Options.CheckpointDirectory!;

    private string Rate => $"bits per {Data.Unit}";

    public int Run(int sampleBytes)
    {
        if (!json)
        {
            Introduce();
        }

        using var interruption = new Interruption();
        long before = trainer.Step;
        if (!RunDescription.IsIn(Directory))
        {
            Describe(); // before the first checkpoint, which nobody could go on with alone
        }

        TrainingResult result;
        try
        {
            _firstStep = before + 1;
            _secondsToFirstStep = (
                DateTime.UtcNow - Process.GetCurrentProcess().StartTime.ToUniversalTime()).TotalSeconds;
            result = trainer.Run(this, interruption.Token);
        }
        catch
        {
            _line.Clear();
            if (trainer.LastCheckpoint is { } saved)
            {
                Console.Error.WriteLine(
                    $"reformer: saved at {Path.GetFileName(saved)}; go on with: reformer train --resume {Directory}");
            }

            throw;
        }

        _line.Clear();
        string checkpoint = result.Checkpoint ?? Save(before);
        Describe();
        LossResult? heldOut = result is { Completed: true, HeldOut: { } measured }
            ? measured
            : WasCutShort(result.Last) ? null
            : MeasureHeldOut(interruption.Token);
        if (json)
        {
            Output.Json(new JsonObject
            {
                ["checkpoint"] = checkpoint,
                ["heldout_bits_per_byte"] = heldOut is { } loss ? Output.Number(loss.Bits) : null,
                ["heldout_accuracy"] = heldOut is { } hits ? Output.Number(hits.Accuracy) : null,
                ["step"] = trainer.Step,
                ["completed"] = result.Completed,
            });
            return ExitCode.Done;
        }

        Console.WriteLine();
        Console.WriteLine(
            result.Completed
                ? Output.Text($"done after {trainer.Step} steps")
                : Output.Text($"stopped after {trainer.Step} steps")
        );
        Console.WriteLine(heldOut is { } found ? HeldOutLine(found) : "held out not measured");
        Console.WriteLine($"checkpoint {checkpoint}");
        if (!result.Completed)
        {
            Console.WriteLine($"go on with: reformer train --resume {Directory}");
        }
        else if (Data.Task == DataTask.Text && sampleBytes > 0)
        {
            Sample(sampleBytes, interruption.Token);
        }

        return ExitCode.Done;
    }

    public void Report(TrainingStep value)
    {
        _averages.Add(value);
        if (value.Step == _firstStep)
        {
            _secondsToFirstStep += value.Seconds; // without measurement and checkpoint
            Describe(); // now the run is known to go on
        }

        bool logged = value.Step % logEvery == 0 || value.Step == trainer.Options.Steps;
        bool kept = value.HeldOut is not null || value.Checkpoint is not null;
        if (logged || kept)
        {
            metrics.Add(value, _memory.PeakBytes);
        }

        if (json)
        {
            if (logged)
            {
                var line = new JsonObject
                {
                    ["step"] = value.Step,
                    ["loss"] = Output.Number(value.Loss.Loss),
                    ["bits_per_byte"] = Output.Number(value.Loss.Bits),
                    ["tokens_per_second"] = Output.Number(value.TokensPerSecond),
                    ["peak_bytes"] = _memory.PeakBytes,
                };
                if (_secondsToFirstStep > 0)
                {
                    line["seconds_to_first_step"] = _secondsToFirstStep;
                    _secondsToFirstStep = 0;
                }

                Output.Json(line);
            }

            return;
        }

        string text = _averages.Line(value);
        if (kept || (logged && !_line.IsLive))
        {
            _line.Keep(text); // a terminal's history has what a file has, at longer intervals
        }
        else
        {
            _line.Show(text);
        }

        if (value.HeldOut is { } heldOut)
        {
            _line.Keep(Output.Text($"step {value.Step,6}   {HeldOutLine(heldOut)}"));
        }

        if (value.Checkpoint is { } checkpoint)
        {
            _line.Keep(Output.Text($"step {value.Step,6}   checkpoint {checkpoint}"));
        }
    }

    /// <summary>Whether a signal ended the measurement of a step; then nobody wants to wait for another.</summary>
    private bool WasCutShort(TrainingStep last) =>
        last.Step > 0
        && last.HeldOut is null
        && trainer.Options.EvaluateEvery > 0
        && (last.Step == trainer.Options.Steps || last.Step % trainer.Options.EvaluateEvery == 0);

    /// <summary>The measurement at the end; null when there is nothing to measure on, or no time left.</summary>
    private LossResult? MeasureHeldOut(CancellationToken stop)
    {
        if (!Data.HasHeldOut)
        {
            return null;
        }

        using var limit = new CancellationTokenSource();
        if (stop.IsCancellationRequested)
        {
            limit.CancelAfter(MeasurementOfAStoppedRun);
        }

        try
        {
            LossResult heldOut = trainer.EvaluateHeldOut(
                cancellation: stop.IsCancellationRequested ? limit.Token : stop);
            metrics.Add(trainer.Step, heldOut);
            return heldOut;
        }
        catch (OperationCanceledException)
        {
            return null;
        }
    }

    /// <summary>
    /// Writes what the run is into its directory. A run that is resumed keeps what it has there until it goes on.
    /// </summary>
    private void Describe()
    {
        if (!_described)
        {
            run.Save(Directory);
            _described = true;
        }
    }

    /// <summary>A run without a step still has a checkpoint: the one it began with, or a new one.</summary>
    private string Save(long before) => before == trainer.Step && resumed is not null
        ? resumed
        : trainer.SaveCheckpoint(Directory);

    private void Introduce()
    {
        ReformerModel model = trainer.Model;
        ReformerConfig config = model.Config;
        TrainingOptions options = trainer.Options;
        ReformerContext context = model.Context;
        string layers = string.Join(' ', config.AttnLayers.Select(kind => kind.ToString().ToLowerInvariant()));
        if (config.AttnLayers.Contains(AttentionKind.Auto) && !options.FullAttention)
        {
            AttentionKind auto = AttentionCost.Resolve(config, AttentionKind.Auto, options.Length);
            layers += $"; auto is {auto.ToString().ToLowerInvariant()}";
        }

        string lsh = options.FullAttention
            ? "full attention in place of LSH"
            : Output.Text($"{config.Lsh.Name}, {config.NumHashes} rounds");
        Console.WriteLine(
            $"data    {source.Identity}{(Data.Paths.Count > 0 ? $" ({string.Join(", ", Data.Paths)})" : "")}");
        Console.WriteLine(
            Output.Text($"model   {config.AttnLayers.Count} layers ({layers}; {lsh}), width {config.HiddenSize}, ")
                + Output.Text(
                    $"{model.ParameterCount:N0} parameters, residual {config.Residual.ToString().ToLowerInvariant()}")
        );
        Console.WriteLine(
            Output.Text($"run     {options.Steps} steps of {(long)options.BatchSize * options.AccumulationSteps} x ")
                + Output.Text($"{options.Length} tokens, ")
                + Output.Text($"seed {options.Seed}, {Output.Place(context)}, in {options.CheckpointDirectory}")
        );
        Console.WriteLine(
            $"memory  {Output.Bytes(plan!.TotalBytes)} planned, {Output.Bytes(context.MemoryInfo.FreeBytes)} free"
                + (trainer.Kept is { } kept ? $"; layers keep {Output.KeptText(kept)}" : "")
        );
        if (chosenBuckets is not null)
        {
            Console.WriteLine(
                Output.Text($"buckets {string.Join(" x ", chosenBuckets)}, chosen for {options.Length} tokens; ")
                    + "num_buckets of the checkpoints says so, at every other length too"
            );
        }

        if (resumed is not null)
        {
            Console.WriteLine(Output.Text($"resumed at step {trainer.Step} from {resumed}"));
        }

        Console.WriteLine();
    }

    private string HeldOutLine(LossResult heldOut) => Data.Task == DataTask.Text
        ? Output.Text($"held out {heldOut.Bits:F3} {Rate}")
        : Output.Text($"held out {heldOut.Bits:F3} {Rate}, accuracy {100 * heldOut.Accuracy:F2} %");

    private void Sample(int bytes, CancellationToken cancellation)
    {
        var batch = new TokenBatch(1, Math.Min(PromptBytes, trainer.Options.Length));
        source.Fill(batch, Data.HasHeldOut ? DataSplit.HeldOut : DataSplit.Train, trainer.Options.Seed, 0);
        using var generator = new Generator(trainer.Model);
        var options = new GenerationOptions
        {
            Count = bytes,
            Temperature = 0.8f,
            TopP = 0.95f,
            Seed = trainer.Options.Seed,
        };
        Console.WriteLine();
        Console.WriteLine("sample (what stands before | was given):");
        Console.Write(TerminalText.Printable(ByteVocabulary.Decode(batch.Ids)) + "|");
        var writer = new TextStream(Console.Out);
        foreach (int id in generator.Generate(batch.Ids.ToArray(), options, cancellation))
        {
            writer.Write(id);
        }

        writer.Flush();
        Console.WriteLine();
    }
}
