using Microsoft.Extensions.Logging;

namespace ReformerNative.Model;

/// <summary>Log messages of models.</summary>
internal static partial class ModelLog
{
    [LoggerMessage(1, LogLevel.Information, "num_buckets was not given: {Factors} by the {Rule} rule for {Length} tokens, kept with the model")]
    public static partial void BucketsChosen(ILogger logger, string factors, Ops.BucketRule rule, long length);
}
