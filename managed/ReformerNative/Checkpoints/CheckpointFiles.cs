namespace ReformerNative.Checkpoints;

/// <summary>Names of the files of a checkpoint and of a run.</summary>
internal static class CheckpointFiles
{
    /// <summary>The model's configuration.</summary>
    public const string Config = "config.json";

    /// <summary>The model's parameters.</summary>
    public const string Weights = "model.safetensors";

    /// <summary>The optimizer's tensors.</summary>
    public const string Optimizer = "optimizer.safetensors";

    /// <summary>Steps, options and data of the trainer.</summary>
    public const string Trainer = "trainer.json";

    /// <summary>Beside the checkpoints: data and options of the run, for the command.</summary>
    public const string Run = "run.json";

    /// <summary>Beside the checkpoints: what each logged step gave, for the command.</summary>
    public const string Metrics = "metrics.jsonl";

    /// <summary>Beside the checkpoints: the process that works on the run, which holds a lock on this file.</summary>
    public const string Owner = "run.lock";
}
