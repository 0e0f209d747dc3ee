using ReformerNative.Training;

namespace ReformerNative.Cli;

/// <summary>Options of runs that name none.</summary>
internal static class TrainingDefaults
{
    /// <summary>A byte-level model of text in a few minutes on two processors.</summary>
    public static TrainingOptions Text { get; } = new()
    {
        Steps = 500,
        BatchSize = 2,
        Length = 1024,
        LearningRate = 2e-3,
        WarmupSteps = 40,
        FinalLearningRateFraction = 0.05,
        EvaluateEvery = 100,
        EvaluationBatches = 8,
        CheckpointEvery = 100,
    };

    /// <summary>The paper's duplication task.</summary>
    public static TrainingOptions Duplication { get; } = new()
    {
        Steps = 2000,
        BatchSize = 8,
        Length = 1024,
        LearningRate = 2e-3,
        WarmupSteps = 50,
        Schedule = LearningRateSchedule.Cosine,
        EvaluateEvery = 100,
        EvaluationBatches = 2,
        CheckpointEvery = 500,
    };
}
