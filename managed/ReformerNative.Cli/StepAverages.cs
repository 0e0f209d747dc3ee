using ReformerNative.Training;

namespace ReformerNative.Cli;

/// <summary>Running means of a training run, and the line that shows them.</summary>
internal sealed class StepAverages(TrainingOptions options, DataTask task, MemoryUse memory)
{
    private const double Smoothing = 0.1; // weight of the newest step, once there are enough

    private long _steps;
    private double _seconds;
    private double _bits;
    private double _accuracy;

    /// <summary>Takes a step in.</summary>
    public void Add(TrainingStep step)
    {
        double weight = Math.Max(Smoothing, 1.0 / ++_steps);
        _seconds += weight * (step.Seconds - _seconds);
        _bits += weight * (step.Loss.Bits - _bits);
        _accuracy += weight * (step.Loss.Accuracy - _accuracy);
    }

    /// <summary>Step, loss, speed, time left and memory.</summary>
    public string Line(TrainingStep step)
    {
        string loss = task == DataTask.Text
            ? Output.Text($"{_bits:F3} bits per byte")
            : Output.Text($"{_bits:F3} bits per symbol  accuracy {100 * _accuracy,6:F2} %");
        string left = Output.Duration((options.Steps - step.Step) * _seconds);
        return Output.Text($"step {step.Step,6} of {options.Steps}   {loss}   ")
            + Output.Text($"{step.Tokens / _seconds:N0} tokens/s   {left} left   {Output.Bytes(memory.Bytes)}");
    }
}
