using System.Text.Json.Serialization;

namespace ReformerNative.Training;

/// <summary>Which optimizer updates the parameters.</summary>
public enum OptimizerKind
{
    /// <summary>AdamW (Loshchilov and Hutter 2019): two moments a parameter.</summary>
    AdamW,

    /// <summary>
    /// Adafactor (Shazeer and Stern 2018) without momentum: factored second moments, next to no memory.
    /// </summary>
    Adafactor,
}

/// <summary>Course of the learning rate after the warm-up.</summary>
public enum LearningRateSchedule
{
    /// <summary>Stays.</summary>
    Constant,

    /// <summary>Falls on a line to the final rate at the last step.</summary>
    Linear,

    /// <summary>Falls on half a cosine to the final rate at the last step.</summary>
    Cosine,

    /// <summary>Falls with the inverse square root of the step.</summary>
    Rsqrt,
}

/// <summary>Everything a training run depends on besides the model's configuration and the data.</summary>
public sealed record TrainingOptions
{
    /// <summary>Seed of data order, dropout and rotations.</summary>
    public ulong Seed { get; init; }

    /// <summary>Steps of the whole run.</summary>
    public long Steps { get; init; } = 1000;

    /// <summary>B, examples of a batch.</summary>
    public int BatchSize { get; init; } = 1;

    /// <summary>T, tokens of an example.</summary>
    public int Length { get; init; } = 1024;

    /// <summary>Batches whose gradients make one step; each counts the same.</summary>
    public int AccumulationSteps { get; init; } = 1;

    /// <summary>The optimizer.</summary>
    public OptimizerKind Optimizer { get; init; } = OptimizerKind.AdamW;

    /// <summary>Largest learning rate.</summary>
    public double LearningRate { get; init; } = 1e-3;

    /// <summary>Course of the learning rate after the warm-up.</summary>
    public LearningRateSchedule Schedule { get; init; } = LearningRateSchedule.Cosine;

    /// <summary>Steps in which the rate rises on a line from 0 to its largest value.</summary>
    public long WarmupSteps { get; init; } = 100;

    /// <summary>Linear and cosine: the rate at the last step as a part of the largest.</summary>
    public double FinalLearningRateFraction { get; init; } = 0.1;

    /// <summary>AdamW: decay of the first moment.</summary>
    public double Beta1 { get; init; } = 0.9;

    /// <summary>AdamW: decay of the second moment.</summary>
    public double Beta2 { get; init; } = 0.98;

    /// <summary>AdamW: added to the root of the second moment.</summary>
    public double Epsilon { get; init; } = 1e-8;

    /// <summary>
    /// Decoupled decay of weights and embeddings (parameters with two axes or more), times the learning rate.
    /// </summary>
    public double WeightDecay { get; init; }

    /// <summary>Adafactor: the second moments' decay at step t is 1 - t^-this.</summary>
    public double AdafactorDecayExponent { get; init; } = 0.8;

    /// <summary>Adafactor: largest root mean square of an update before the learning rate.</summary>
    public double AdafactorClipThreshold { get; init; } = 1;

    /// <summary>Adafactor: whether the learning rate is relative to the root mean square of the parameter.</summary>
    public bool AdafactorScaleParameter { get; init; } = true;

    /// <summary>Gradients whose global norm is larger are scaled down to it; 0 for no limit.</summary>
    public double MaxGradientNorm { get; init; } = 1;

    /// <summary>LSH layers attend to the whole sequence while training.</summary>
    public bool FullAttention { get; init; }

    /// <summary>Held-out loss every so many steps and at the end; 0 for never.</summary>
    public long EvaluateEvery { get; init; }

    /// <summary>Batches of a held-out measurement; always the same ones.</summary>
    public int EvaluationBatches { get; init; } = 8;

    /// <summary>Hash rounds of a held-out measurement; null for those of the configuration.</summary>
    public int? EvaluationRounds { get; init; }

    /// <summary>A checkpoint every so many steps, besides the one at the end; 0 for that alone.</summary>
    public long CheckpointEvery { get; init; }

    /// <summary>Checkpoints that stay, the newest; 0 for all.</summary>
    public int KeepCheckpoints { get; init; } = 2;

    /// <summary>
    /// Bytes that the buffers of <see cref="MemoryPlan"/> may take: what is left over is used to keep activations,
    /// layer by layer, which makes steps faster. Null keeps nothing, the least memory. It changes no bit of a run with
    /// exact residuals, and is no part of a checkpoint.
    /// </summary>
    [JsonIgnore]
    public long? MemoryBudget { get; init; }

    /// <summary>Where checkpoints go; null for none.</summary>
    [JsonIgnore]
    public string? CheckpointDirectory { get; init; }

    /// <summary>Checks every option.</summary>
    /// <exception cref="ArgumentException">Some are impossible; the message lists them all.</exception>
    public void Validate()
    {
        var problems = new List<string>();
        void Rule(bool holds, string name, string expected, object found)
        {
            if (!holds)
            {
                problems.Add(FormattableString.Invariant($"{name}: expected {expected}, found {found}"));
            }
        }

        Rule(Steps is >= 0 and < uint.MaxValue, nameof(Steps), "an integer of 0 .. 2^32 - 2", Steps);
        Rule(BatchSize >= 1, nameof(BatchSize), "an integer from 1 up", BatchSize);
        Rule(Length >= 2, nameof(Length), "an integer from 2 up", Length);
        Rule(AccumulationSteps >= 1, nameof(AccumulationSteps), "an integer from 1 up", AccumulationSteps);
        Rule(
            Steps * (double)AccumulationSteps < uint.MaxValue, nameof(AccumulationSteps),
            "less than 2^32 batches in all", AccumulationSteps);
        Rule(Enum.IsDefined(Optimizer), nameof(Optimizer), "AdamW or Adafactor", Optimizer);
        Rule(Enum.IsDefined(Schedule), nameof(Schedule), "Constant, Linear, Cosine or Rsqrt", Schedule);
        Rule(
            double.IsFinite(LearningRate) && LearningRate >= 0, nameof(LearningRate), "a finite number from 0 up",
            LearningRate);
        Rule(WarmupSteps >= 0, nameof(WarmupSteps), "an integer from 0 up", WarmupSteps);
        Rule(
            FinalLearningRateFraction is >= 0 and <= 1, nameof(FinalLearningRateFraction), "0 .. 1",
            FinalLearningRateFraction);
        Rule(Beta1 is >= 0 and < 1, nameof(Beta1), "0 <= b < 1", Beta1);
        Rule(Beta2 is >= 0 and < 1, nameof(Beta2), "0 <= b < 1", Beta2);
        Rule(double.IsFinite(Epsilon) && Epsilon > 0, nameof(Epsilon), "a finite number above 0", Epsilon);
        Rule(
            double.IsFinite(WeightDecay) && WeightDecay >= 0, nameof(WeightDecay), "a finite number from 0 up",
            WeightDecay);
        Rule(
            AdafactorDecayExponent is > 0 and <= 1, nameof(AdafactorDecayExponent), "0 < x <= 1",
            AdafactorDecayExponent);
        Rule(
            double.IsFinite(AdafactorClipThreshold) && AdafactorClipThreshold > 0, nameof(AdafactorClipThreshold),
            "a finite number above 0", AdafactorClipThreshold);
        Rule(
            double.IsFinite(MaxGradientNorm) && MaxGradientNorm >= 0, nameof(MaxGradientNorm),
            "a finite number from 0 up", MaxGradientNorm);
        Rule(EvaluateEvery >= 0, nameof(EvaluateEvery), "an integer from 0 up", EvaluateEvery);
        Rule(EvaluationBatches >= 1, nameof(EvaluationBatches), "an integer from 1 up", EvaluationBatches);
        Rule(EvaluationRounds is null or >= 1, nameof(EvaluationRounds), "an integer from 1 up", EvaluationRounds ?? 0);
        Rule(CheckpointEvery >= 0, nameof(CheckpointEvery), "an integer from 0 up", CheckpointEvery);
        Rule(KeepCheckpoints >= 0, nameof(KeepCheckpoints), "an integer from 0 up", KeepCheckpoints);
        Rule(MemoryBudget is null or >= 0, nameof(MemoryBudget), "bytes from 0 up", MemoryBudget ?? 0);
        if (problems.Count > 0)
        {
            throw new ArgumentException(string.Join("; ", problems));
        }
    }

    /// <summary>The learning rate of a step.</summary>
    /// <param name="step">The step, 1 for the first.</param>
    /// <returns>The rate.</returns>
    public double LearningRateAt(long step)
    {
        if (step < WarmupSteps)
        {
            return LearningRate * step / WarmupSteps;
        }

        double last = LearningRate * FinalLearningRateFraction;
        double part = Math.Min(1, (double)(step - WarmupSteps) / Math.Max(1, Steps - WarmupSteps));
        return Schedule switch
        {
            LearningRateSchedule.Linear => LearningRate + ((last - LearningRate) * part),
            LearningRateSchedule.Cosine => last + ((LearningRate - last) * 0.5 * (1 + Math.Cos(Math.PI * part))),
            LearningRateSchedule.Rsqrt => LearningRate
                * Math.Sqrt(Math.Max(1, WarmupSteps) / (double)Math.Max(1, step)),
            _ => LearningRate,
        };
    }

    /// <summary>Whether something that is done at intervals, and at the last step, is due.</summary>
    internal bool IsDue(long step, long interval) => step == Steps || (interval > 0 && step % interval == 0);

    /// <summary>
    /// These options with the other ones' length, intervals and memory, which a resumed run may change.
    /// </summary>
    internal TrainingOptions WithIntervalsOf(TrainingOptions other) => this with
    {
        Steps = other.Steps,
        EvaluateEvery = other.EvaluateEvery,
        EvaluationBatches = other.EvaluationBatches,
        EvaluationRounds = other.EvaluationRounds,
        CheckpointEvery = other.CheckpointEvery,
        KeepCheckpoints = other.KeepCheckpoints,
        MemoryBudget = other.MemoryBudget,
        CheckpointDirectory = other.CheckpointDirectory,
    };
}
