using System.Globalization;
using ReformerNative.Tensors;

namespace ReformerNative.Cli;

/// <summary>
/// Memory in use where a context computes: on the CPU what is resident of this process, as the kernel counts it; on a
/// GPU all that is taken of it, as its driver counts it, by other processes too. A GPU's peak is the largest of the
/// values read here; buffers are kept, so that one read after the work has seen them all.
/// </summary>
internal sealed class MemoryUse(ReformerContext context)
{
    private long _peak;

    /// <summary>What is in use now, in bytes.</summary>
    public long Bytes
    {
        get
        {
            if (context.Device.Type == DeviceType.Cpu)
            {
                return Read("VmRSS:") ?? Environment.WorkingSet;
            }

            MemoryInfo info = context.MemoryInfo;
            long used = info.TotalBytes - info.FreeBytes;
            _peak = Math.Max(_peak, used);
            return used;
        }
    }

    /// <summary>The most that was ever in use, in bytes.</summary>
    public long PeakBytes
    {
        get
        {
            if (context.Device.Type == DeviceType.Cpu)
            {
                return Read("VmHWM:") ?? System.Diagnostics.Process.GetCurrentProcess().PeakWorkingSet64;
            }

            _ = Bytes;
            return _peak;
        }
    }

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
                return long.Parse(line.AsSpan(key.Length).Trim().TrimEnd("kB").Trim(), CultureInfo.InvariantCulture)
                    * 1024;
            }
        }

        return null;
    }
}
