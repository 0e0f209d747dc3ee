using ReformerNative.Data;
using ReformerNative.Model;
using ReformerNative.Ops;
using ReformerNative.Tensors;
using ReformerNative.Training;

namespace ReformerNative.Benchmarks;

/// <summary>
/// The model whose training steps are measured: causal, byte-level, 2 layers of 4 heads, chunks of 64.
/// </summary>
internal static class StepModel
{
    private const int Heads = 4;
    private const int Chunk = 64;

    /// <param name="context">Where to compute.</param>
    /// <param name="length">T.</param>
    /// <param name="rounds">Hash rounds of LSH attention; 0 for dense attention.</param>
    /// <param name="width">E, a quarter of the feed-forward's width and the width of all heads together.</param>
    /// <returns>The model.</returns>
    public static ReformerModel Create(ReformerContext context, int length, int rounds, int width)
    {
        int rows = (int)Math.Ceiling(Math.Sqrt(length));
        AttentionKind kind = rounds == 0 ? AttentionKind.Full : AttentionKind.Lsh;
        var config = new ReformerConfig
        {
            AttentionHeadSize = width / Heads,
            AttnLayers = [kind, kind],
            AxialPosShape = [rows, (length + rows - 1) / rows],
            AxialPosEmbdsDim = [width / 4, width - (width / 4)],
            FeedForwardSize = 4 * width,
            HiddenSize = width,
            IsDecoder = true,
            LshAttnChunkLength = Chunk,
            MaxPositionEmbeddings = length,
            NumAttentionHeads = Heads,
            NumHashes = Math.Max(1, rounds),
            Residual = ResidualMode.Exact,
            VocabSize = ByteTokens.Ids,
            PadTokenId = 0,
            EosTokenId = null,
        };
        return ReformerModel.Create(config, context, seed: 1);
    }

    public static Trainer Trainer(ReformerModel model, int length) =>
        new(
            model,
            new ByteTokens(),
            new TrainingOptions
            {
                Length = length,
                LearningRate = 1e-4,
                WarmupSteps = 0,
                Schedule = LearningRateSchedule.Constant,
            }
        );

    /// <summary>A fixed sequence of byte ids, made without allocating.</summary>
    private sealed class ByteTokens : IBatchSource
    {
        public const int Ids = 258;

        public string Identity => "multiples of 7919";

        public int VocabularySize => Ids;

        public void Fill(TokenBatch batch, DataSplit split, ulong seed, long index)
        {
            for (int i = 0; i < batch.Ids.Length; i++)
            {
                batch.Ids[i] = (int)((i + index) * 7919 % Ids);
            }

            batch.Ids.CopyTo(batch.Labels);
            batch.HasMask = false;
        }
    }
}
