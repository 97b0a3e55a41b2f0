"""A decoder as other code expects a language model: token ids in, logits out."""

from torch import Tensor, nn

from widestream.model.decoder import Decoder


class LanguageModel(nn.Module):
    """Logits for the token behind every token.

    Args:
        decoder: what computes; its own `forward` ends at the vectors that the head reads.
    """

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits, float32 unless under autocast.

        Args:
            tokens: ids [B, T] int64, each row with a document boundary in front, as in training.
            segments: document of every token [B, T]; attention stays inside. None: a row is one document.

        Returns:
            [B, T, V]; V is `decoder.config.vocab_size`, which may exceed the tokenizer's.

        Raises:
            UserError: with learned positions, more tokens than the context.
        """
        return self.decoder.logits(self.decoder(tokens, segments))
