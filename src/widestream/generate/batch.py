"""Sequences of any lengths that one model continues side by side, and that come and go: continuous batching.

They end in one column of a cache, with padding in front of shorter ones, which attention does not see. A sequence
goes through its prompt alone and joins with what that has left behind, so that a stream's memory of earlier tokens
begins as it does without others.

Letters: B sequences, T tokens, V vocabulary, D width of what the head reads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from widestream.blocks.cache import KVCache
from widestream.machine import autocast
from widestream.model.decoder import Decoder

SPARE = 64
"""Columns that a new cache has to spare. The cache is copied when they are used up, as when sequences come or go."""


class Batch:
    """Sequences that one model continues side by side.

    Logits are those of each sequence alone, but for the rounding of products of other sizes.

    Args:
        model: in evaluation mode, on any device; with `cast_weights` before for bfloat16.
        precision: `float32` or `bf16`.
    """

    def __init__(self, model: Decoder, precision: str = "float32"):
        self.model, self.precision = model, precision
        self.device = model.head_weight().device
        self._cache: KVCache | None = None
        self._lengths: list[int] = []

    def __len__(self) -> int:
        return len(self._lengths)

    @torch.no_grad()
    def read(self, prompt: Sequence[int]) -> tuple[KVCache, Tensor]:
        """Go through a prompt alone.

        Args:
            prompt: token ids, at least one; see `check_prompt`.

        Returns:
            What it leaves behind, for `change`, and hidden vectors [T, D], for `logits`.
        """
        with autocast(self.device, self.precision):
            cache = self.model.new_cache(1, len(prompt), torch.bfloat16 if self.precision == "bf16" else None)
            return cache, self.model(torch.tensor([list(prompt)], device=self.device), cache=cache)[0]

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Of the token behind each [..., D] -> [..., V], float32 on the CPU."""
        with autocast(self.device, self.precision):
            return self.model.logits(hidden).float().cpu()

    def change(self, kept: Sequence[int], new: Sequence[KVCache] = ()) -> None:
        """Leave all but the sequences `kept` behind, and put `new` ones after them; one cache may come several times.

        Args:
            kept: numbers of sequences.
            new: what `read` has left behind.
        """
        if not new and list(kept) == list(range(len(self))):
            return
        self._lay(kept, new)

    def _lay(self, kept: Sequence[int], new: Sequence[KVCache]) -> None:
        rows = [(self._cache, row, self._lengths[row]) for row in kept if self._cache is not None]
        rows += [(cache, 0, cache.length) for cache in new]
        self._lengths = [tokens for _, _, tokens in rows]
        self._cache = KVCache.side_by_side(rows, SPARE) if rows else None

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to every sequence.

        Args:
            tokens: B of them.

        Returns:
            Logits behind them [B, V], float32 on the CPU.
        """
        assert self._cache is not None, "there is no sequence"
        if self._cache.length == self._cache.capacity:
            self._lay(range(len(self)), ())
        cache = self._cache
        lengths = torch.tensor(self._lengths, device=self.device)[:, None]
        padded = len(set(self._lengths)) > 1
        # Column by column: the last ones are a sequence's own, and the new token's.
        own = torch.arange(cache.length + 1, device=self.device) >= cache.length - lengths
        with autocast(self.device, self.precision):
            hidden = self.model(
                torch.tensor(tokens, device=self.device)[:, None],
                cache=cache,
                mask=own[:, None] if padded else None,
                positions=lengths,
            )[:, -1]
        self._lengths = [length + 1 for length in self._lengths]
        return self.logits(hidden)
