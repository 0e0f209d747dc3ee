using ReformerNative.Oracle;
using ReformerNative.Tensors;
using Native = ReformerNative.Ops;

namespace ReformerNative.Tests.OracleComparison;

/// <summary>Embeddings against the oracle.</summary>
public sealed class EmbeddingTests
{
    // Sizes and widths of the position tables.
    [TestCase(Native.PositionEncoding.None, new int[0], new int[0])]
    [TestCase(Native.PositionEncoding.Learned, new[] { 70 }, new[] { 33 })]
    [TestCase(Native.PositionEncoding.Axial, new[] { 66 }, new[] { 33 })]
    [TestCase(Native.PositionEncoding.Axial, new[] { 6, 11 }, new[] { 1, 32 })]
    [TestCase(Native.PositionEncoding.Axial, new[] { 3, 2, 11 }, new[] { 16, 1, 16 })]
    [TestCase(Native.PositionEncoding.Axial, new[] { 2, 3, 4, 3 }, new[] { 8, 9, 15, 1 })]
    public void Embedding_EveryPositionKind_EqualsOracle(Native.PositionEncoding encoding, int[] sizes, int[] widths)
    {
        foreach (int tokens in new[] { 1, 31, 33 })
        {
            foreach (int first in new[] { 0, 32 })
            {
                foreach (float dropout in new[] { 0, 0.3f })
                {
                    foreach (int? grid in new int?[] { null, -16 })
                    {
                        Check(encoding, sizes, widths, tokens, first, dropout, grid);
                    }
                }
            }
        }
    }

    private static void Check(
        Native.PositionEncoding encoding, int[] sizes, int[] widths, int tokens, int first, float dropout, int? grid)
    {
        const int Batch = 3, Width = 33, Vocabulary = 17;
        var randomness = new Randomness(9, 1UL << 33 | 4, -1);
        var random = new Random(tokens + first);
        var tables = new EmbeddingTables(
            Width, random.Normals(Vocabulary * Width), [.. sizes.Zip(widths, (s, w) => random.Normals(s * w))], widths);
        int[] ids = random.Integers(Batch * tokens, Vocabulary);
        double[] grad1 = random.Normals(Batch * tokens * Width), grad2 = random.Normals(Batch * tokens * Width);
        bool hasSecond = first == 0;
        using var run = new NativeRun();
        TensorView[] positions = [.. tables.Positions.Select((p, i) => run.Input(p, sizes[i], widths[i]))];
        TensorView[] gradPositions = [.. tables.Positions.Select((_, i) => run.Accumulator(sizes[i], widths[i]))];
        var native = new Native.Embedding
        {
            Positions = encoding,
            Dropout = dropout,
            Seed = randomness.Seed,
            Step = randomness.Step,
            FirstPosition = first,
            Residual = grid is not null ? Native.ResidualMode.Exact : Native.ResidualMode.Float,
            GridExponent = grid ?? 0,
            Ids = run.Input(ids, Batch, tokens),
            Word = run.Input(tables.Word, Vocabulary, Width),
            Position = new(positions),
            Stream1 = run.Output(Batch, tokens, Width),
            Stream2 = hasSecond ? run.Output(Batch, tokens, Width) : default,
            GradStream1 = run.Input(grad1, Batch, tokens, Width),
            GradStream2 = hasSecond ? run.Input(grad2, Batch, tokens, Width) : default,
            GradWord = run.Accumulator(Vocabulary, Width),
            GradPosition = new(gradPositions),
            RangeReport = run.Zeros(DType.Int64, 4),
        };
        native.Forward(run.Workspace);
        native.Backward(run.Workspace);

        // float32 may round a value near the middle of two grid points to the other one.
        var e = Embedding.Forward(tables, ids, tokens, first, dropout, randomness, grid);
        double floor = grid is { } exponent ? Math.ScaleB(1, exponent) : 0;
        NativeRun.Expect("embedding.stream", native.Stream1, e, NativeRun.ForwardLimit, floor);
        if (hasSecond)
        {
            Assert.That(native.Stream2.ToArray<float>(), Is.EqualTo(native.Stream1.ToArray<float>()));
        }

        if (grid is { } g)
        {
            Assert.That(
                native.Stream1.ToArray<float>().Select(v => Math.ScaleB(v, -g)).Select(v => v - Math.Round(v)),
                Is.All.Zero);
        }

        Assert.That(native.RangeReport.ToArray<long>(), Is.All.Zero);
        double[] gradE = hasSecond ? [.. grad1.Zip(grad2, (a, b) => a + b)] : grad1;
        var gradients = Embedding.Backward(tables, ids, tokens, first, dropout, randomness, gradE);
        NativeRun.ExpectAdded("embedding.grad_word", native.GradWord, gradients.Word);
        for (int i = 0; i < positions.Length; i++)
        {
            NativeRun.ExpectAdded("embedding.grad_position", gradPositions[i], gradients.Positions[i]);
        }

        run.CheckMemory();
    }
}
