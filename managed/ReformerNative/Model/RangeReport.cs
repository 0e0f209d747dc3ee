using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Model;

/// <summary>Where ops report the first stream value that left the exact range, if residuals are exact.</summary>
internal sealed class RangeReport
{
    private readonly ReformerConfig _config;
    private readonly TensorView _report;
    private readonly long[] _values = new long[4];

    public RangeReport(ReformerConfig config, PassAllocator allocate)
    {
        _config = config;
        _report = allocate("reports", new TensorShape(4), DType.Int64);
    }

    /// <summary>What ops write to; absent with float residuals, which have no such range.</summary>
    public TensorView View => _config.Residual == ResidualMode.Exact ? _report : default;

    /// <summary>Forgets what was reported.</summary>
    public void Clear() => _report.Zero();

    /// <summary>Waits for the ops and throws if one reported a value.</summary>
    /// <param name="first">Position of the first token of the pass.</param>
    /// <param name="length">Tokens of each example in the pass.</param>
    /// <exception cref="ResidualRangeException">A value left the range.</exception>
    public void Check(long first, long length)
    {
        if (!View.IsAbsent)
        {
            View.CopyTo<long>(_values);
            Check(_values, first, length);
        }
    }

    /// <summary>The same of a report that has been copied.</summary>
    public void Check(ReadOnlySpan<long> report, long first, long length)
    {
        if (report[0] > 0)
        {
            (long row, long channel) = Math.DivRem(report[3], _config.HiddenSize);
            throw new ResidualRangeException(
                (int)report[1], (int)report[2], row / length, first + (row % length), channel, report[0],
                _config.ResidualGridExponent);
        }
    }
}
