using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;

namespace ReformerNative.Tests.Cli;

/// <summary>Numbers of every command are read alike on every machine.</summary>
public sealed class NumberTests
{
    private static readonly string[] Wrong =
        ["0,002", "1,024", "3,0", "1 000", "0x10", "", "NaN", "Infinity", "-1"];

    /// <summary>In German a comma begins the fraction and a point groups digits.</summary>
    private static CultureInfo German
    {
        get
        {
            var culture = (CultureInfo)CultureInfo.InvariantCulture.Clone();
            culture.NumberFormat.NumberDecimalSeparator = ",";
            culture.NumberFormat.NumberGroupSeparator = ".";
            return culture;
        }
    }

    public static IEnumerable<TestCaseData> NumericOptions() =>
        from command in Descendants(ReformerNative.Cli.Program.Commands())
        from option in command.Options
        let type = Nullable.GetUnderlyingType(option.ValueType) ?? option.ValueType
        where type.IsPrimitive && type != typeof(bool)
        select new TestCaseData(command, option, type).SetArgDisplayNames(command.Name, option.Name, type.Name);

    [TestCaseSource(nameof(NumericOptions))]
    public void NumericOption_InAnyCulture_HasAPointAndNoGroups(Command command, Option option, Type type)
    {
        CultureInfo before = CultureInfo.CurrentCulture;
        try
        {
            foreach (CultureInfo culture in (CultureInfo[])[CultureInfo.InvariantCulture, German])
            {
                CultureInfo.CurrentCulture = culture;
                foreach (string wrong in Wrong)
                {
                    Assert.That(
                        Complaints(command, option, wrong),
                        Has.Some.StartsWith($"{option.Name}: expected ").And.Some.EndsWith($"found '{wrong}'"));
                }

                bool integer = type == typeof(int) || type == typeof(long);
                foreach (string word in integer ? (string[])["12"] : ["0.25", "2.5e-1"])
                {
                    OptionResult result = command.Parse([option.Name, word]).GetResult(option)!;
                    Assert.That(result.Errors, Is.Empty);
                    Assert.That(
                        Convert.ToDouble(result.GetValueOrDefault<object>(), CultureInfo.InvariantCulture),
                        Is.EqualTo(integer ? 12 : 0.25));
                }
            }
        }
        finally
        {
            CultureInfo.CurrentCulture = before;
        }
    }

    [Test]
    public void Command_WithAGermanMachine_ReadsAndPrintsAPoint()
    {
        using var directory = new TemporaryDirectory();
        string run = directory.File("run");
        (int code, string output, string errors) = Repository.Run(
            "env", "DOTNET_SYSTEM_GLOBALIZATION_INVARIANT=0", "LC_ALL=de_DE.UTF-8", "dotnet",
            Path.Combine(AppContext.BaseDirectory, "reformer.dll"), "train", "--config",
            CliInputs.WriteConfig(directory), "--data", CliInputs.WriteText(directory), "--length", "48", "--batch",
            "1", "--steps", "1", "--lr", "0.002", "--threads", "1", "--sample", "0", "--out", run);
        Assert.That(code, Is.Zero, errors);
        Assert.That(File.ReadAllText(Path.Combine(run, "run.json")), Does.Contain("\"learning_rate\": 0.002"));
        Assert.That(output, Does.Match(@"held out \d\.\d{3} bits per byte"));
    }

    private static string[] Complaints(Command command, Option option, string word) =>
        [.. command.Parse([option.Name, word]).Errors.Select(error => error.Message)];

    private static IEnumerable<Command> Descendants(Command command) =>
        command.Subcommands.SelectMany(Descendants).Prepend(command);
}
