namespace ReformerNative.Oracle.Tests;

public sealed class PhiloxTests
{
    // The known answers that the authors of Philox publish with Random123.
    [TestCase(0u, 0u, 0u, 0u, 0u, 0u, ExpectedResult = new[] { 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u })]
    [TestCase(
        ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ExpectedResult = new[] { 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu })]
    [TestCase(
        0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0xa4093822u, 0x299f31d0u,
        ExpectedResult = new[] { 0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u })]
    public uint[] Block_KnownInput_GivesKnownWords(uint c0, uint c1, uint c2, uint c3, uint k0, uint k1) =>
        Philox.Block(c0, c1, c2, c3, k0, k1);

    [Test]
    public void Dropout_ManyElements_KeepsTheStatedShare()
    {
        var randomness = new Randomness(7, 3, 2);
        var kept = Enumerable
            .Range(0, 20000)
            .Count(i => Philox.DropoutMultiplier(randomness, Site.AttentionOutput, i, 0.3f) > 0);

        // Four standard deviations of a binomial count are 0.013.
        Assert.That(kept / 20000.0, Is.EqualTo(0.7).Within(0.013));
        Assert.That(Philox.DropoutMultiplier(randomness, Site.AttentionOutput, 0, 0), Is.EqualTo(1));
    }

    [Test]
    public void Normal_ManyElements_HasMoments()
    {
        var values = Enumerable
            .Range(0, 20000)
            .Select(i => Philox.Normal(new(11, 0, -1), Site.Parameters, i))
            .ToArray();
        Assert.That(values.Average(), Is.EqualTo(0).Within(4 / Math.Sqrt(20000)));
        Assert.That(values.Average(v => v * v), Is.EqualTo(1).Within(4 * Math.Sqrt(2 / 20000.0)));
        Assert.That(values.Average(v => v * v * v * v), Is.EqualTo(3).Within(4 * Math.Sqrt(96 / 20000.0)));
    }

    [Test]
    public void Words_AnyPartOfTheKeyChanged_Differ()
    {
        Randomness[] keys = [new(1, 1, 1), new(2, 1, 1), new(1UL << 32 | 1, 1, 1), new(1, 2, 1), new(1, 1, 2)];
        var words = keys.Select(k => Philox.Words(k, Site.Data, 0)).Append(Philox.Words(keys[0], Site.Sampling, 0))
            .Append(Philox.Words(keys[0], Site.Data, 1L << 32));
        Assert.That(words.Select(w => w[0]).Distinct().Count(), Is.EqualTo(7));
    }
}
