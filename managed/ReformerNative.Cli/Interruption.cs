using System.Runtime.InteropServices;

namespace ReformerNative.Cli;

/// <summary>
/// Ctrl+C, SIGTERM and SIGHUP as a cancellation that work looks at between steps. A second signal ends the process at
/// once, which is harmless: checkpoints appear whole or not at all.
/// </summary>
internal sealed class Interruption : IDisposable
{
    private readonly CancellationTokenSource _source = new();
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
                            _source.Cancel();
                        }
                    }
                )
            ),
        ];

    public CancellationToken Token => _source.Token;

    public void Dispose()
    {
        foreach (PosixSignalRegistration registration in _registrations)
        {
            registration.Dispose();
        }

        _source.Dispose();
    }
}
