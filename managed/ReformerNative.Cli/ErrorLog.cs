using Microsoft.Extensions.Logging;

namespace ReformerNative.Cli;

/// <summary>Writes the library's messages to stderr, where they disturb no output.</summary>
internal sealed class ErrorLog : ILogger
{
    public static ErrorLog Instance { get; } = new();

    public bool IsEnabled(LogLevel logLevel) => logLevel >= LogLevel.Information;

    public IDisposable? BeginScope<TState>(TState state)
        where TState : notnull => null;

    public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter)
    {
        if (IsEnabled(logLevel))
        {
            Console.Error.WriteLine(formatter(state, exception));
        }
    }
}
