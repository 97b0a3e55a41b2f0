"""The cache for sampling. Attention's keys and values are plain heads for every stream, so one cache serves all."""

from collections.abc import Sequence

import torch
from torch import Tensor

from widestream.errors import UserError


class KVCache:
    """Keys and values of the tokens so far, for every attention block, and what a stream that mixes tokens remembers.

    Nothing that carries gradients, or that autograd may have kept, is overwritten: a copy takes its place.

    Args:
        num_slots: attention blocks.
        shape: (batch B, heads H_kv, longest length, head width D_h).
        dtype: of what is stored.
        device: where.
        one_value: all blocks have the same values, which are stored once.
    """

    def __init__(
        self,
        num_slots: int,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        one_value: bool = False,
    ):
        # Zeros, since a step of fixed shape multiplies what is not filled yet by a weight of 0, and 0 times NaN is NaN.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_slots)]
        values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(1 if one_value else num_slots)]
        self.values = values * num_slots if one_value else values
        self.one_value = one_value
        self.memory: dict[str, Tensor] = {}
        """A stream's own, by name."""
        self.documents: Tensor | None = None
        """Document of every token [B, longest length]; None: nothing was said of them, they are of one."""
        self.length = 0
        self.rows, self.capacity = shape[0], shape[2]

    def append(self, slot: int, k: Tensor, v: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Store k, v [B, H_kv, T, D_h] behind what is there; returns all keys and values so far.

        With `positions` [T] they are stored there, and all that there is room for is returned, filled or not: then
        nothing depends on how many tokens there are, and a step can be compiled or captured once for all of them.
        """
        keys = self.keys[slot] = _to_write(self.keys[slot], k)
        values = self.values[slot] = _to_write(self.values[slot], v)
        if positions is not None:
            return keys.index_copy_(2, positions, k.to(keys.dtype)), values.index_copy_(
                2, positions, v.to(values.dtype)
            )
        end = self.length + k.shape[2]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def repeated(self, rows: int) -> "KVCache":
        """A cache of one sequence as one of several that begin alike, with the same room."""
        assert self.rows == 1, "only one sequence can be repeated"
        like = self.keys[0]
        _, heads, room, width = like.shape
        copy = KVCache(len(self.keys), (rows, heads, room, width), like.dtype, like.device, one_value=self.one_value)
        for to, own in ((copy.keys, self.keys), (copy.values, self.values)):
            for there, here in zip(to, own, strict=True):
                there.copy_(here)
        copy.memory = {name: value.repeat(rows, *[1] * (value.dim() - 1)) for name, value in self.memory.items()}
        copy.documents = None if self.documents is None else self.documents.repeat(rows, 1)
        copy.length = self.length
        return copy

    @classmethod
    def side_by_side(cls, sequences: "Sequence[tuple[KVCache, int, int]]", spare: int) -> "KVCache":
        """Sequences out of several caches as rows of a new one. They end in one column; what is in front of shorter
        ones is zero and must be masked.

        Args:
            sequences: a cache, a row of it, and how many of its last tokens are that row's.
            spare: room for so many more tokens.
        """
        first = sequences[0][0]
        _, heads, _, width = first.keys[0].shape
        length = max(tokens for _, _, tokens in sequences)
        shape = (len(sequences), heads, length + spare, width)
        like = first.keys[0]
        shared = first.one_value
        made = cls(len(first.keys), shape, like.dtype, like.device, one_value=shared)
        for to, (source, row, tokens) in enumerate(sequences):
            here, there = slice(source.length - tokens, source.length), slice(length - tokens, length)
            for slot in range(len(first.keys)):
                made.keys[slot][to, :, there] = source.keys[slot][row, :, here]
            for slot in range(1 if shared else len(first.values)):
                made.values[slot][to, :, there] = source.values[slot][row, :, here]
        for name in first.memory:
            made.memory[name] = torch.stack([source.memory[name][row] for source, row, _ in sequences])
        made.length = length
        return made

    def remember(self, name: str, value: Tensor) -> None:
        """Keep a stream's `value` for the next tokens, where the last one lay."""
        if name in self.memory:
            self.memory[name] = _to_write(self.memory[name], value).copy_(value)
        else:
            self.memory[name] = value.clone()  # a slice would keep alive what it was cut from

    def remember_documents(self, segments: Tensor | None, positions: Tensor) -> Tensor | None:
        """Keep the documents [B, T] of the tokens at `positions` [T]; without, these go on with the last one's.

        Returns:
            Those of all tokens that there is room for [B, longest length], or None where none were ever given.

        Raises:
            UserError: documents are given behind tokens that had none.
        """
        if self.documents is None:
            if segments is None:
                return None
            if self.length:
                raise UserError(
                    "The cache holds tokens whose documents were not given, so these cannot be told apart from them; "
                    "give segments from the first tokens on, or with none."
                )
            self.documents = segments.new_zeros(len(segments), self.capacity)
        elif segments is None:
            segments = self.documents.index_select(1, positions[:1] - 1).expand(-1, len(positions))
        return self.documents.index_copy_(1, positions, segments.to(self.documents.dtype))

    def advance(self, num_tokens: int) -> None:
        """Count tokens as stored, once all layers have them."""
        self.length += num_tokens

    def check_rows(self, rows: int) -> None:
        """Refuse another number of sequences.

        Raises:
            UserError: not as many as the cache is for.
        """
        if rows != self.rows:
            raise UserError(f"The cache is for {self.rows} sequences, and the tokens are of {rows}.")

    def check_room(self, num_tokens: int) -> None:
        """Refuse tokens that do not fit.

        Raises:
            UserError: more than the cache holds.
        """
        if self.length + num_tokens > self.capacity:
            raise UserError(
                f"{self.length + num_tokens} tokens do not fit a cache of {self.capacity}; "
                "shorten the prompt or ask for fewer."
            )


def _to_write(stored: Tensor, value: Tensor) -> Tensor:
    """What `value` may be written into: `stored`, or a copy where gradients are concerned."""
    concerned = stored.requires_grad or (value.requires_grad and torch.is_grad_enabled())
    return stored.clone() if concerned else stored
