using System.Text.RegularExpressions;
using ReformerNative.Checkpoints;
using ReformerNative.Model;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Cli;

/// <summary>What the process returns.</summary>
internal static class ExitCode
{
    public const int Done = 0;
    public const int Failed = 1;
    public const int WrongUsage = 2;
}

/// <summary>An option has a value that makes no sense, or options contradict each other.</summary>
[System.Diagnostics.CodeAnalysis.SuppressMessage("Design", "CA1032", Justification = "Only ever made with a message.")]
internal sealed class UsageException(string message) : Exception(message);

/// <summary>Sentences for failures.</summary>
internal static partial class Failure
{
    /// <summary>
    /// Exit code and sentence of a failure. Every exception has one: a stack trace helps nobody at a prompt.
    /// </summary>
    public static (int Code, string Message) Describe(Exception error) =>
        error switch
        {
            UsageException => (ExitCode.WrongUsage, error.Message),
            FileNotFoundException { FileName: { } part } when IsAssembly(part) => (
                ExitCode.Failed,
                $"a part of the program could not be loaded, {part.Split(',')[0]}: "
                    + "are too few open files allowed (ulimit -n)?"),
            ArgumentException => (ExitCode.Failed, WithoutParameter(error.Message)),
            ReformerFormatException
            or ReformerConfigException
            or ResidualRangeException
            or TrainingDivergedException
            or NotFiniteNumberException
            or ReformerNativeException
            or IOException
            or UnauthorizedAccessException
            or InvalidOperationException
            or NotSupportedException
            or DllNotFoundException => (ExitCode.Failed, error.Message),
            OutOfMemoryException or OverflowException => (
                ExitCode.Failed, $"{error.Message} (see 'reformer plan' for what a run needs)"),
            OperationCanceledException => (ExitCode.Failed, "interrupted"),
            TypeInitializationException { InnerException: { } inner } => Describe(inner),
            _ => (ExitCode.Failed, $"unexpected failure, please report it: {error.GetType().Name}: {error.Message}"),
        };

    /// <summary>Runs a check of values that came from options, so that its complaint counts as wrong usage.</summary>
    public static T Usage<T>(Func<T> action)
    {
        try
        {
            return action();
        }
        catch (Exception error) when (error is ArgumentException or ReformerConfigException or OverflowException)
        {
            throw new UsageException(WithoutParameter(error.Message));
        }
    }

    private static bool IsAssembly(string name) => name.Contains(", Version=", StringComparison.Ordinal);

    /// <summary>
    /// The runtime appends the name of a method's parameter, which says nothing to a user of the command.
    /// </summary>
    private static string WithoutParameter(string message) => Parameter().Replace(message, "");

    [GeneratedRegex(@"\s*\(Parameter '[^']*'\)")]
    private static partial Regex Parameter();
}
