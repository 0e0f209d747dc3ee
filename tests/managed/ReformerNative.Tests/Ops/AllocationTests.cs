using ReformerNative.Ops;
using ReformerNative.Tensors;

namespace ReformerNative.Tests.Ops;

/// <summary>In a steady state a call of an op allocates nothing on the managed heap.</summary>
public sealed class AllocationTests
{
    [Test]
    public void Ops_InASteadyState_AllocateNothing([Values] bool onCuda)
    {
        using ReformerContext context = onCuda ? CudaOnHost.Open() : new ReformerContext(threads: 1);
        using var workspace = new Workspace(context);
        using Tensor x = context.Zeros(new TensorShape(4, 8));
        using Tensor y = context.Zeros(new TensorShape(4, 8));
        using Tensor z = context.Zeros(new TensorShape(4, 8));
        using Tensor w = context.Zeros(new TensorShape(4, 8));
        using Tensor gradRow = context.Zeros(new TensorShape(8));
        using Tensor gradRow2 = context.Zeros(new TensorShape(8));
        using Tensor square = context.Zeros(new TensorShape(8, 8));
        using Tensor row = context.Zeros(new TensorShape(8));
        using Tensor result = context.Zeros(new TensorShape(2));
        var gradients = new TensorView[300]; // as many as a deep model has parameters
        Array.Fill(gradients, row.View);
        BlockParameters parameters = Block(row, square);
        using Tensor report = context.Zeros(new TensorShape(4), DType.Int64);
        using Tensor rotations = context.Zeros(new TensorShape(1, 4, 1, 2));
        AttentionOptions attention = AttentionOptions.Lsh(
            AttentionPreset.Trax, causal: true, 2, 1, new BucketFactors(4));
        var host = new float[32];

        AssertNoAllocation(
            "layer norm",
            () =>
            {
                var op = new LayerNorm
                {
                    Epsilon = 1e-6f,
                    X = x,
                    Weight = row,
                    Bias = row,
                    Y = y,
                };
                op.Forward(workspace);
                (op with { GradY = y, GradX = z, GradWeight = gradRow, GradBias = gradRow2 }).Backward(workspace);
            }
        );
        AssertNoAllocation(
            "feed-forward",
            () =>
                new FeedForward
                {
                    X = x,
                    W1 = square,
                    B1 = row,
                    W2 = square,
                    B2 = row,
                    Y = y,
                }.Forward(workspace)
        );
        AssertNoAllocation(
            "global norm",
            () =>
                new GlobalNorm
                {
                    MaxNorm = 1,
                    Gradients = gradients,
                    Result = result,
                }.Run(workspace)
        );
        AssertNoAllocation(
            "random normal",
            () =>
                new RandomNormal
                {
                    Site = RandomSite.Data,
                    StandardDeviation = 1,
                    Destination = x,
                }.Run(context)
        );
        AssertNoAllocation(
            "AdamW",
            () =>
                new AdamW
                {
                    LearningRate = 1e-3f,
                    Beta1 = 0.9f,
                    Beta2 = 0.999f,
                    Epsilon = 1e-8f,
                    Step = 1,
                    Parameters = [x],
                    Gradients = [y],
                    Moments1 = [z],
                    Moments2 = [w],
                    WeightDecays = [0.1f],
                }.Run(context)
        );
        AssertNoAllocation(
            "reversible block",
            () =>
                new ReversibleBlock
                {
                    Attention = attention,
                    Heads = 2,
                    LayerNormEpsilon = 1e-6f,
                    Residual = ResidualMode.Exact,
                    GridExponent = -16,
                    Stream1 = x.Reshape(new TensorShape(1, 4, 8)),
                    Stream2 = y.Reshape(new TensorShape(1, 4, 8)),
                    Rotations = rotations,
                    RangeReport = report,
                    Parameters = parameters,
                }.Forward(workspace)
        );
        AssertNoAllocation(
            "copies",
            () =>
            {
                x.CopyTo<float>(host);
                x.CopyFrom<float>(host);
                x.Rows(1, 2).Zero();
            }
        );
    }

    private static void AssertNoAllocation(string name, Action call) =>
        Allocations.AssertNone(100, call, name); // pools filled

    private static BlockParameters Block(Tensor row, Tensor square) => new()
    {
        AttentionNormWeight = row,
        AttentionNormBias = row,
        Query = square,
        Value = square,
        Output = square,
        FeedForwardNormWeight = row,
        FeedForwardNormBias = row,
        W1 = square,
        B1 = row,
        W2 = square,
        B2 = row,
    };
}
