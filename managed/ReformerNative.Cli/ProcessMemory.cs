using System.Globalization;

namespace ReformerNative.Cli;

/// <summary>Resident memory of this process, as the kernel counts it.</summary>
internal static class ProcessMemory
{
    /// <summary>The most that was ever resident, in bytes.</summary>
    public static long PeakBytes => Read("VmHWM:") ?? System.Diagnostics.Process.GetCurrentProcess().PeakWorkingSet64;

    /// <summary>What is resident now, in bytes.</summary>
    public static long ResidentBytes => Read("VmRSS:") ?? Environment.WorkingSet;

    private static long? Read(string key)
    {
        const string status = "/proc/self/status";
        if (!File.Exists(status))
        {
            return null;
        }

        // A line reads "VmHWM:     12345 kB".
        foreach (string line in File.ReadLines(status))
        {
            if (line.StartsWith(key, StringComparison.Ordinal))
            {
                return long.Parse(line.AsSpan(key.Length).Trim().TrimEnd("kB").Trim(), CultureInfo.InvariantCulture) * 1024;
            }
        }

        return null;
    }
}
