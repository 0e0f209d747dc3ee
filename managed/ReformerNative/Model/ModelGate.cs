using System.Runtime.CompilerServices;

namespace ReformerNative.Model;

/// <summary>
/// Lets one call at a time into a model and none after its disposal, so that a mistake is a sentence about the model
/// and not an error of one of its parts.
/// </summary>
internal sealed class ModelGate
{
    private string? _call; // that is inside
    private bool _closed;

    /// <summary>Enters. Dispose what it returns at the end of the call.</summary>
    /// <param name="call">What the call is named in messages.</param>
    /// <exception cref="ObjectDisposedException">The model is disposed.</exception>
    /// <exception cref="InvalidOperationException">Another call is inside.</exception>
    public Visit Enter([CallerMemberName] string call = "")
    {
        if (Interlocked.CompareExchange(ref _call, call, null) is { } other)
        {
            throw new InvalidOperationException(
                $"{nameof(ReformerModel)}: expected one call at a time, found {call} while {other} is running; "
                + "give each thread a model and a context of its own, or lock around the calls");
        }

        if (_closed)
        {
            Leave();
            ObjectDisposedException.ThrowIf(true, typeof(ReformerModel));
        }

        return new Visit(this);
    }

    /// <summary>Lets no call in any more, unless one is inside.</summary>
    /// <returns>Whether the gate was open before.</returns>
    /// <exception cref="InvalidOperationException">A call is inside.</exception>
    public bool Close()
    {
        if (_closed)
        {
            return false;
        }

        using Visit visit = Enter(nameof(ReformerModel.Dispose));
        _closed = true;
        return true;
    }

    private void Leave() => Volatile.Write(ref _call, null);

    /// <summary>A call that is inside.</summary>
    internal readonly ref struct Visit(ModelGate gate)
    {
        public void Dispose() => gate.Leave();
    }
}
