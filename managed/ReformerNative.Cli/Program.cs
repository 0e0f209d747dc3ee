using System.CommandLine;
using System.Globalization;
using ReformerNative.Cli.Commands;

namespace ReformerNative.Cli;

/// <summary>Entry point: parses, runs, and turns every failure into a sentence and an exit code.</summary>
internal static class Program
{
    /// <summary>All commands with their options.</summary>
    public static RootCommand Commands() =>
        new("Trains, runs, verifies and measures Reformer models: LSH attention and reversible layers.")
        {
            TrainCommand.Create(),
            GenerateCommand.Create(),
            EvaluateCommand.Create(),
            VerifyCommand.Create(),
            BenchCommand.Create(),
            ExperimentCommand.Create(),
            PlanCommand.Create(),
            InfoCommand.Create(),
            ConvertCommand.Create(),
        };

    public static int Main(string[] args)
    {
        LossyStream output = LossyStream.Install();
        int code = Run(args);
        if (output.Problem is null)
        {
            return code;
        }

        Console.Error.WriteLine($"reformer: standard output could not be written: {output.Problem}");
        return code == ExitCode.Done ? ExitCode.Failed : code;
    }

    private static int Run(string[] args)
    {
        // Numbers are read and printed alike on every machine.
        CultureInfo.CurrentCulture = CultureInfo.DefaultThreadCurrentCulture = CultureInfo.InvariantCulture;
        if (args.FirstOrDefault(arg => arg.Contains('\uFFFD', StringComparison.Ordinal)) is { } replaced)
        {
            // The runtime has put this character in the place of bytes that are not UTF-8: they are lost.
            Console.Error.WriteLine($"reformer: expected arguments in UTF-8, found '{TerminalText.Line(replaced)}'");
            return ExitCode.WrongUsage;
        }

        ParseResult parsed = Commands().Parse(args);
        if (parsed.Errors.Count > 0)
        {
            foreach (string message in parsed.Errors.Select(error => error.Message).Distinct())
            {
                Console.Error.WriteLine($"reformer: {TerminalText.Line(message)}");
            }

            Console.Error.WriteLine($"Try: {CommandPath(parsed)} --help");
            return ExitCode.WrongUsage;
        }

        try
        {
            // Commands that can stop in the middle listen to signals themselves (see Interruption).
            return parsed.Invoke(
                new InvocationConfiguration { EnableDefaultExceptionHandler = false, ProcessTerminationTimeout = null }
            );
        }
        catch (Exception error) when (Failure.Describe(error) is var (code, message))
        {
            Console.Error.WriteLine($"reformer: {TerminalText.Line(message)}");
            return code;
        }
    }

    private static string CommandPath(ParseResult parsed)
    {
        var names = new Stack<string>();
        for (System.CommandLine.Parsing.SymbolResult? at = parsed.CommandResult; at is not null; at = at.Parent)
        {
            if (at is System.CommandLine.Parsing.CommandResult { Command: not RootCommand } command)
            {
                names.Push(command.Command.Name);
            }
        }

        return string.Join(' ', names.Prepend("reformer"));
    }
}
