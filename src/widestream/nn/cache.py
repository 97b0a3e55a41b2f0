"""The cache for sampling. Attention's keys and values are plain heads for every stream, so one cache serves all."""

import torch
from torch import Tensor

from widestream.errors import UserError


class KVCache:
    """Keys and values of the tokens so far, for every attention block, and what a stream that mixes tokens remembers.

    Args:
        num_slots: attention blocks.
        shape: (batch B, heads H, longest length, head width D_h).
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
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_slots)]
        values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(1 if one_value else num_slots)]
        self.values = values * num_slots if one_value else values
        self.memory: dict[str, Tensor] = {}
        """A stream's own, by name."""
        self.length = 0
        self.capacity = shape[2]

    def append(self, slot: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v [B, H, T, D_h] behind what is there; returns all keys and values so far."""
        end = self.length + k.shape[2]
        self.keys[slot][:, :, self.length : end] = k
        self.values[slot][:, :, self.length : end] = v
        return self.keys[slot][:, :, :end], self.values[slot][:, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Count tokens as stored, once all layers have them."""
        self.length += num_tokens

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
