using Microsoft.Extensions.Logging;

namespace ReformerNative.Training;

/// <summary>Log messages of training.</summary>
internal static partial class TrainerLog
{
    [LoggerMessage(
        1,
        LogLevel.Debug,
        "step {Step}: loss {Loss}, rate {Rate}, gradient norm {Norm}, {TokensPerSecond} tokens/s"
    )]
    public static partial void Step(
        ILogger logger,
        long step,
        double loss,
        double rate,
        double norm,
        double tokensPerSecond
    );

    [LoggerMessage(2, LogLevel.Information, "step {Step}: held-out loss {Loss} ({Bits} bits), accuracy {Accuracy}")]
    public static partial void HeldOut(ILogger logger, long step, double loss, double bits, double accuracy);

    [LoggerMessage(3, LogLevel.Information, "step {Step}: checkpoint {Path}")]
    public static partial void Saved(ILogger logger, long step, string path);

    [LoggerMessage(4, LogLevel.Information, "going on from step {Step} of {Path}")]
    public static partial void Resumed(ILogger logger, long step, string path);

    [LoggerMessage(
        5,
        LogLevel.Warning,
        "the number of steps was {Before} and is {Now}: the learning rate takes another course"
    )]
    public static partial void StepsChanged(ILogger logger, long before, long now);

    [LoggerMessage(6, LogLevel.Information, "stopped on request after step {Step}")]
    public static partial void Stopped(ILogger logger, long step);

    [LoggerMessage(7, LogLevel.Error, "step {Step}: could not be saved: {Problem}")]
    public static partial void NotSaved(ILogger logger, long step, string problem);
}
