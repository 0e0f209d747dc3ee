namespace ReformerNative.Model;

/// <summary>What a model's head computes.</summary>
public enum ReformerTask
{
    /// <summary>
    /// Next-token language model (<c>ReformerModelWithLMHead</c>); needs <see cref="ReformerConfig.IsDecoder"/>.
    /// </summary>
    CausalLanguageModel,

    /// <summary>Language model of masked positions (<c>ReformerForMaskedLM</c>); bidirectional.</summary>
    MaskedLanguageModel,

    /// <summary>One class per sequence, from its first position (<c>ReformerForSequenceClassification</c>).</summary>
    SequenceClassification,
}
