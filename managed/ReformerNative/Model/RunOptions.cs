namespace ReformerNative.Model;

/// <summary>
/// What a single pass through a model depends on besides its parameters and its input. The default is a deterministic
/// evaluation.
/// </summary>
public readonly record struct RunOptions
{
    /// <summary>Seed of rotations and dropout.</summary>
    public ulong Seed { get; init; }

    /// <summary>Step: other steps draw other rotations and dropout. Below 2^32.</summary>
    public ulong Step { get; init; }

    /// <summary>Whether dropout is on.</summary>
    public bool Dropout { get; init; }

    /// <summary>
    /// Hash rounds, 1 or more; null for those of the configuration. More rounds at evaluation are usually better.
    /// </summary>
    public int? Rounds { get; init; }

    /// <summary>LSH layers attend to the whole sequence, unhashed, with the same shared and normalised keys.</summary>
    public bool FullAttention { get; init; }

    /// <summary>
    /// Rotations to use instead of random ones: one array for each layer, [sets, D, R, columns] row-major (sets by the
    /// rotation scope: 1, H or B·H), null for layers that do not hash.
    /// </summary>
    public IReadOnlyList<float[]?>? Rotations { get; init; }

    /// <summary>
    /// What each layer keeps for the backward pass of a pass with gradients; null for nothing. The model holds the
    /// buffers from then on, as it holds those of its last batch.
    /// </summary>
    public IReadOnlyList<KeepActivations>? Keep { get; init; }
}
