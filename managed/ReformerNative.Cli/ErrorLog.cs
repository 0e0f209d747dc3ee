using Microsoft.Extensions.Logging;

namespace ReformerNative.Cli;

/// <summary>Writes the library's messages to stderr, each on a line of its own.</summary>
/// <param name="before">What to write before a message: a line's end where the cursor stands in the middle of a
/// line.</param>
internal sealed class ErrorLog(string before = "") : ILogger
{
    public bool IsEnabled(LogLevel logLevel) => logLevel >= LogLevel.Information;

    public IDisposable? BeginScope<TState>(TState state)
        where TState : notnull => null;

    public void Log<TState>(
        LogLevel logLevel,
        EventId eventId,
        TState state,
        Exception? exception,
        Func<TState, Exception?, string> formatter
    )
    {
        if (IsEnabled(logLevel))
        {
            Console.Error.WriteLine(before + TerminalText.Line(formatter(state, exception)));
        }
    }
}
