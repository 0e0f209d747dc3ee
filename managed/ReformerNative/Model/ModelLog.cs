using Microsoft.Extensions.Logging;
using ReformerNative.Ops;

namespace ReformerNative.Model;

/// <summary>Log messages of models.</summary>
internal static partial class ModelLog
{
    [LoggerMessage(
        1,
        LogLevel.Information,
        "num_buckets was not given: {Factors} by the {Rule} rule for {Length} tokens, kept with the model"
    )]
    public static partial void BucketsChosen(ILogger logger, string factors, BucketRule rule, long length);

    [LoggerMessage(
        2,
        LogLevel.Information,
        "auto layers are {Form} at {Length} tokens; LSH costs no more than dense attention from {Crossover} on"
    )]
    public static partial void AutoResolved(ILogger logger, AttentionKind form, long length, long? crossover);
}
