namespace ReformerNative.Ops;

/// <summary>
/// What follows from the options of attention for one example of a given length; see
/// <see cref="AttentionOptions.Geometry"/>.
/// </summary>
/// <param name="IsPrefixCausal">Whether a token sees what it would see without the tokens after it.</param>
/// <param name="PaddedLength">Slots of a round: the tokens and the padding that is imagined behind them.</param>
/// <param name="Keys">Keys that a query sees in one round, at most.</param>
/// <param name="Buckets">LSH: number of buckets; that of padding is not counted.</param>
/// <param name="RotationColumns">LSH: columns of random rotations that a round needs.</param>
/// <param name="BucketRing">LSH: latest positions of each bucket that a cache keeps.</param>
/// <param name="Pairs">Pairs of query and key that one head looks at; chunks count whole.</param>
/// <param name="MultiplyAdds">
/// Multiply-adds of one head's forward pass for each of its channels: scores, weighted sums, and of LSH the products
/// with the rotations.
/// </param>
public readonly record struct AttentionGeometry(
    bool IsPrefixCausal, long PaddedLength, long Keys, long Buckets, long RotationColumns, long BucketRing,
    double Pairs, double MultiplyAdds);
