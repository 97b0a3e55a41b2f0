"""What all blocks and the stream of one forward pass share: positions, documents, masks, the cache."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from widestream.blocks.attention_kind import Attention
from widestream.blocks.cache import KVCache
from widestream.blocks.flex import FlexMask, make_flex_mask
from widestream.blocks.positions import alibi_bias, rotary_angles
from widestream.recipe.model import ModelConfig

Window = int | None
"""How many tokens back attention sees, the token itself counted; None: all."""


@dataclass(frozen=True)
class Context:
    """Built once per forward pass, outside of anything compiled."""

    positions: Tensor
    """Of the tokens in their sequence [T]."""
    segments: Tensor | None
    """Document of every token [B, T], or None where all tokens are of one document."""
    masks: dict[Window, Tensor | FlexMask | None]
    """By window: what is added to the logits (float) or which pairs are allowed (bool), broadcastable to [B, H, T, S],
    or the same for FlexAttention; None: causal alone."""
    rotary: tuple[Tensor, Tensor] | None = None
    """Cosines and sines of the tokens' rotary angles."""
    cache: KVCache | None = None
    """What earlier tokens left behind, when sampling."""
    fixed: bool = False
    """Whether no shape may depend on how many tokens the cache holds: attention then sees all of its room, masked."""
    fused: bool = False
    """Whether attention has the backward pass of kernels/attention_cpu.py."""
    shared: dict[str, Tensor] = field(default_factory=dict)
    """What one block leaves for later ones, by name (the first layer's values)."""


def make_context(
    config: ModelConfig,
    positions: Tensor,
    segments: Tensor | None = None,
    mask: Tensor | None = None,
    cache: KVCache | None = None,
    windows: Iterable[Window] = (None,),
    fixed: bool = False,
    attention: Attention = "sdpa",
) -> Context:
    """Build masks, biases and angles.

    Args:
        config: the model's.
        positions: of the tokens in their sequence [T].
        segments: document of every token [B, T]; used if `config.document_mask`.
        mask: allowed (query, key) pairs [B, T, T] bool, instead of causal and same document.
        cache: earlier tokens.
        windows: those of the model's attention blocks.
        fixed: see `Context`; needs a cache.
        attention: `flex`: FlexAttention wherever there is a mask other than causal, no cache, and no `mask`. `fused`:
            wherever there is no cache.
    """
    segments = segments if config.document_mask else None
    alibi_heads = config.num_heads if config.positions == "alibi" else None

    def build(window: Window) -> Tensor | FlexMask | None:
        masked = segments is not None or window is not None or alibi_heads is not None
        if attention == "flex" and masked and mask is None and cache is None:
            return make_flex_mask(positions, segments, window, alibi_heads)
        return _mask(config, positions, segments, mask, cache, window, fixed)

    masks = {window: build(window) for window in windows}
    rotary = rotary_angles(positions, config.head_dim, config.rotary_base) if config.positions == "rotary" else None
    return Context(positions, segments, masks, rotary, cache, fixed, attention == "fused" and cache is None)


def _mask(
    config: ModelConfig,
    positions: Tensor,
    segments: Tensor | None,
    mask: Tensor | None,
    cache: KVCache | None,
    window: Window,
    fixed: bool,
) -> Tensor | None:
    keys = torch.arange(_num_keys(positions, cache, fixed), device=positions.device)
    one_sees_all = len(positions) == 1 and not fixed  # the last token, of keys that end with its own
    if mask is not None:
        mask = mask[:, None]
    elif segments is not None:
        mask = ((segments[:, :, None] == segments[:, None, :]) & (positions[:, None] >= keys[None, :]))[:, None]
    elif config.positions == "alibi" or window is not None or not (one_sees_all or len(keys) == len(positions)):
        mask = (positions[:, None] >= keys[None, :])[None, None]
    if mask is not None and window is not None:
        mask = mask & (positions[:, None] - keys[None, :] < window)
    if config.positions == "alibi":
        assert mask is not None
        bias = alibi_bias(config.num_heads, positions, keys)[None]
        mask = bias.masked_fill(~mask, float("-inf"))
    return mask


def _num_keys(positions: Tensor, cache: KVCache | None, fixed: bool) -> int:
    if cache is None:
        return len(positions)
    return cache.capacity if fixed else cache.length + len(positions)
