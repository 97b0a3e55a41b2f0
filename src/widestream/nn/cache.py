"""The KV cache for sampling. Attention's keys and values are plain heads for every stream, so one cache serves all."""

import torch
from torch import Tensor

from widestream.errors import UserError


class KVCache:
    """Keys and values of the tokens so far, for every layer.

    Args:
        num_layers: layers L.
        shape: (batch B, heads H, longest length, head width D_h).
        dtype: of what is stored.
        device: where.
    """

    def __init__(self, num_layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device):
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.length = 0
        self.capacity = shape[2]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v [B, H, T, D_h] behind what is there; returns all keys and values so far."""
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

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
