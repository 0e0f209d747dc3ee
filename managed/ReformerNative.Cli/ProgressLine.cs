namespace ReformerNative.Cli;

/// <summary>
/// One line that is written again and again at a terminal. Where stderr is not a terminal, only the lines that are
/// meant to stay appear.
/// </summary>
internal sealed class ProgressLine(bool json = false)
{
    private const string ClearToEnd = "\u001b[K";
    private const int UnknownWidth = 120; // columns of a terminal that does not say

    private readonly bool _live = !Console.IsErrorRedirected;
    private bool _shown;

    /// <summary>Whether there is a terminal to show progress at.</summary>
    public bool IsLive => _live;

    /// <summary>Replaces the line.</summary>
    public void Show(string text)
    {
        if (_live)
        {
            int width = Console.WindowWidth > 1 ? Console.WindowWidth - 1 : UnknownWidth;
            Console.Error.Write($"\r{(text.Length > width ? text[..width] : text)}{ClearToEnd}");
            _shown = true;
        }
    }

    /// <summary>Prints a line that stays: on stdout, unless that is for JSON.</summary>
    public void Keep(string text)
    {
        Clear();
        (json ? Console.Error : Console.Out).WriteLine(text);
    }

    public void Clear()
    {
        if (_shown)
        {
            Console.Error.Write($"\r{ClearToEnd}");
            _shown = false;
        }
    }
}
