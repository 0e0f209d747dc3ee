using System.Runtime.InteropServices;

namespace ReformerNative.Cli;

/// <summary>
/// Ctrl+C, SIGTERM and SIGHUP as a cancellation that work looks at between steps. A second signal ends the process at
/// once, which is harmless: checkpoints appear whole or not at all.
/// </summary>
internal sealed class Interruption : IDisposable
{
    /// <summary>
    /// How long a stopped command may go on with what is pleasant to have: less than a system waits that shuts down.
    /// </summary>
    private static readonly TimeSpan GracePeriod = TimeSpan.FromSeconds(3);

    private readonly CancellationTokenSource _source = new();
    private readonly CancellationTokenSource _grace = new();
    private readonly PosixSignalRegistration[] _registrations;

    public Interruption() =>
        _registrations = [
            .. new[] { PosixSignal.SIGINT, PosixSignal.SIGTERM, PosixSignal.SIGHUP }.Select(signal =>
                PosixSignalRegistration.Create(
                    signal,
                    context =>
                    {
                        if (!_source.IsCancellationRequested)
                        {
                            context.Cancel = true;
                            _grace.CancelAfter(GracePeriod);
                            _source.Cancel();
                        }
                    }
                )
            ),
        ];

    public CancellationToken Token => _source.Token;

    /// <summary>Cancelled a few seconds after the signal.</summary>
    public CancellationToken Grace => _grace.Token;

    public void Dispose()
    {
        foreach (PosixSignalRegistration registration in _registrations)
        {
            registration.Dispose();
        }

        _source.Dispose();
        _grace.Dispose();
    }
}
