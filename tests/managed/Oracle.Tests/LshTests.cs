namespace ReformerNative.Oracle.Tests;

public sealed class LshTests
{
    [Test]
    public void Hash_WorkedExample_GivesHandComputedBuckets()
    {
        // One head of size 2, one round, factors [4, 2]: columns (1,0) and (0,1) make the first digit, (1,1) the
        // second.
        var options = new AttentionOptions { Factors = [4, 2], PadBucket = true };
        double[] rotations = [1, 0, 1, 0, 1, 1];
        double[] q = [3, 1, -2, 1, 0, -5, 1, 1, 9, 9];

        // (3,1): [3,1,-3,-1] -> 0, [4,-4] -> 0; (-2,1): [-2,1,2,-1] -> 2, [-1,1] -> 1; (0,-5): [0,-5,0,5] -> 3, 1;
        // (1,1): a tie, first wins.
        Assert.That(
            Lsh.Hash(options, new(1, 5, 1, 2), q, [true, true, true, true, false], rotations),
            Is.EqualTo(new[] { 0, 6, 7, 0, 8 }));
    }

    [Test]
    public void Hash_RotationScopes_UseTheirOwnRotation()
    {
        var random = new Random(1);
        var options = new AttentionOptions { Factors = [6], Rounds = 2 };
        var shape = new AttentionShape(2, 5, 3, 4);
        var one = random.Normals(4 * 2 * 3);
        var q = random.Normals(shape.Size);
        var shared = Lsh.Hash(options, shape, q, null, one);
        foreach (var scopes in new[] { 3, 6 })
        {
            var equal = Lsh.Hash(options, shape, q, null, [.. Enumerable.Range(0, scopes).SelectMany(_ => one)]);
            Assert.That(equal, Is.EqualTo(shared));

            // Turning the last scope's rotation around changes the last head's buckets (of every example, if it is per
            // head), and no other.
            double[] lastTurned =
            [
                .. Enumerable.Range(0, scopes).SelectMany(s => one.Select(x => s == scopes - 1 ? -x : x)),
            ];
            var turned = Lsh.Hash(options, shape, q, null, lastTurned);
            for (var i = 0; i < shared.Length; i++)
            {
                var row = i / 10;
                var isLast = scopes == 3 ? row % 3 == 2 : row == 5;
                Assert.That(turned[i], Is.EqualTo(isLast ? (shared[i] + 3) % 6 : shared[i]));
            }
        }
    }

    [Test]
    public void Sort_SmallCase_OrdersByBucketThenPositionWithPaddingLast()
    {
        var options = new AttentionOptions { Rounds = 1, ChunkLength = 4 };
        Assert.That(
            Lsh.Sort(options, new(1, 6, 1, 1), [2, 0, 1, 0, 2, 1]), Is.EqualTo(new[] { 1, 3, 2, 5, 0, 4, 6, 7 }));
    }

    // Lengths, chunks and results from the specification's table.
    [TestCase(BucketRule.Trax, 1024, 64, ExpectedResult = new[] { 32 })]
    [TestCase(BucketRule.Trax, 4096, 64, ExpectedResult = new[] { 128 })]
    [TestCase(BucketRule.Trax, 8192, 64, ExpectedResult = new[] { 16, 16 })]
    [TestCase(BucketRule.Trax, 12288, 128, ExpectedResult = new[] { 16, 12 })]
    [TestCase(BucketRule.Trax, 524288, 64, ExpectedResult = new[] { 128, 128 })]
    [TestCase(BucketRule.Trax, 16384, 64, ExpectedResult = new[] { 32, 16 })]
    [TestCase(BucketRule.Trax, 65536, 64, ExpectedResult = new[] { 64, 32 })]
    [TestCase(BucketRule.Trax, 65536, 128, ExpectedResult = new[] { 32, 32 })]
    [TestCase(BucketRule.Trax, 65536, 256, ExpectedResult = new[] { 32, 16 })]
    [TestCase(BucketRule.HuggingFace, 1024, 64, ExpectedResult = new[] { 32 })]
    [TestCase(BucketRule.HuggingFace, 4096, 64, ExpectedResult = new[] { 128 })]
    [TestCase(BucketRule.HuggingFace, 8192, 64, ExpectedResult = new[] { 16, 16 })]
    [TestCase(BucketRule.HuggingFace, 12288, 128, ExpectedResult = new[] { 128 })]
    [TestCase(BucketRule.HuggingFace, 524288, 64, ExpectedResult = new[] { 128, 128 })]
    [TestCase(BucketRule.HuggingFace, 16384, 64, ExpectedResult = new[] { 16, 32 })]
    [TestCase(BucketRule.HuggingFace, 65536, 64, ExpectedResult = new[] { 32, 64 })]
    [TestCase(BucketRule.HuggingFace, 65536, 128, ExpectedResult = new[] { 32, 32 })]
    [TestCase(BucketRule.HuggingFace, 65536, 256, ExpectedResult = new[] { 512 })]
    [TestCase(BucketRule.Lucidrains, 1024, 64, ExpectedResult = new[] { 16 })]
    [TestCase(BucketRule.Lucidrains, 12288, 128, ExpectedResult = new[] { 96 })]
    [TestCase(BucketRule.Lucidrains, 524288, 64, ExpectedResult = new[] { 8192 })]
    public int[] AutomaticBuckets_TableOfTheSpecification_IsReproduced(BucketRule rule, int length, int chunk) =>
        Lsh.AutomaticBuckets(rule, length, chunk, length);
}
