"""What all blocks and the stream of one forward pass share: positions, documents, masks, the cache."""

from collections.abc import ItemsView, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from widestream.blocks.alibi import ALL, alibi_bias
from widestream.blocks.attention_kind import Attention
from widestream.blocks.cache import KVCache
from widestream.blocks.flex import FlexMask, make_flex_mask
from widestream.blocks.rotary import Angles, rotary_angles
from widestream.blocks.split import TokenSplit
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig

Window = int | None
"""How many tokens back attention sees, the token itself counted; None: all."""


class Shared:
    """What blocks leave for later ones and for the loss, by name (the first layer's values, the balance of experts).

    No dictionary of Python's own: FSDP2 hands a block copies of those that hold tensors with gradients, and what the
    block left in one would be lost.
    """

    def __init__(self):
        self._tensors: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._tensors[name] = tensor

    def items(self) -> ItemsView[str, Tensor]:
        """What was left, by name."""
        return self._tensors.items()

    def update(self, other: "Shared") -> None:
        """Take what is left in another one."""
        self._tensors.update(other.items())

    def copy(self) -> "Shared":
        """Another one with the same in it."""
        copied = Shared()
        copied.update(self)
        return copied


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
    rotary: dict[bool, Angles] = field(default_factory=dict)
    """The tokens' rotary angles by whether a layer's attention has a window; empty: the model has none."""
    cache: KVCache | None = None
    """What earlier tokens left behind, when sampling."""
    fixed: bool = False
    """Whether no shape may depend on how many tokens the cache holds: attention then sees all of its room, masked."""
    fused: bool = False
    """Whether attention has the backward pass of kernels/attention_cpu.py."""
    documents: Tensor | None = None
    """Document of every token at its position [B, S], of those in the cache too; None where `segments` is."""
    shared: Shared = field(default_factory=Shared)
    """What one block leaves for later ones."""
    split: TokenSplit | None = None
    """Where several processes share windows: how what looks at other tokens gets at them. `positions`, `segments` and
    angles are then of own tokens; masks and `documents` of whole windows."""


def make_context(
    config: ModelConfig,
    positions: Tensor,
    segments: Tensor | None = None,
    mask: Tensor | None = None,
    cache: KVCache | None = None,
    windows: Iterable[Window] = (None,),
    fixed: bool = False,
    attention: Attention = "sdpa",
    numbers: Tensor | None = None,
    split: TokenSplit | None = None,
    heads: slice = ALL,
) -> Context:
    """Build masks, biases and angles.

    Args:
        config: the model's.
        positions: of the tokens in their sequence [T].
        segments: document of every token [B, T]; used if `config.document_mask`. A cache keeps them.
        mask: allowed (query, key) pairs [B, T, S] bool, instead of causal and same document; S with those in the cache.
        cache: earlier tokens.
        windows: those of the model's attention blocks.
        fixed: see `Context`; needs a cache.
        attention: `flex`: FlexAttention wherever there is a mask other than causal, no cache, and no `mask`. `fused`:
            wherever there is no cache.
        numbers: positions that rotary angles are of [B, T], where rows have their own; default: `positions`.
        split: the processes that share these windows, if several do.
        heads: those whose attention this process computes.

    Raises:
        UserError: `mask` has another shape; documents behind cached tokens that had none.
    """
    segments = documents = segments if config.document_mask else None
    if cache is not None and (documents := cache.remember_documents(segments, positions)) is not None:
        segments = documents.index_select(1, positions)
    wanted = (len(positions), _num_keys(positions, cache, fixed))
    if mask is not None and mask.shape[-2:] != wanted:
        raise UserError(
            f"The mask is {list(mask.shape)}; for {wanted[0]} tokens and {wanted[1]} keys, cached ones included, "
            f"it must be [B, {wanted[0]}, {wanted[1]}]."
        )
    alibi_heads = config.num_heads if config.positions == "alibi" else None

    def build(window: Window) -> Tensor | FlexMask | None:
        masked = segments is not None or window is not None or alibi_heads is not None
        if attention == "flex" and masked and mask is None and cache is None:
            return make_flex_mask(positions, segments, window, alibi_heads, config.attention_soft_cap, heads)
        return _mask(config, positions, wanted[1], (segments, documents), mask, window, fixed, heads)

    windows = set(windows)
    masks = {window: build(window) for window in windows}
    numbers, rotary = positions if numbers is None else numbers, {}
    if split is not None:
        positions, numbers = split.own(positions, 0), split.own(numbers, -1)
        segments = None if segments is None else split.own(segments, 1)
    if config.positions == "rotary":
        rotary = {windowed: rotary_angles(config, numbers, windowed) for windowed in {w is not None for w in windows}}
    fused = attention == "fused" and cache is None
    # `Shared` by its name: a default's factory is nothing that torch.compile can call.
    return Context(positions, segments, masks, rotary, cache, fixed, fused, documents, Shared(), split)


def _mask(
    config: ModelConfig,
    positions: Tensor,
    num_keys: int,
    segments: tuple[Tensor | None, Tensor | None],
    mask: Tensor | None,
    window: Window,
    fixed: bool,
    heads: slice,
) -> Tensor | None:
    keys, (asking, known) = torch.arange(num_keys, device=positions.device), segments
    one_sees_all = len(positions) == 1 and not fixed  # the last token, of keys that end with its own
    if mask is not None:
        mask = mask[:, None]
    elif asking is not None and known is not None:
        mask = ((asking[:, :, None] == known[:, None, :num_keys]) & (positions[:, None] >= keys[None, :]))[:, None]
    elif config.positions == "alibi" or window is not None or not (one_sees_all or len(keys) == len(positions)):
        mask = (positions[:, None] >= keys[None, :])[None, None]
    if mask is not None and window is not None:
        mask = mask & (positions[:, None] - keys[None, :] < window)
    if config.positions == "alibi":
        assert mask is not None
        bias = alibi_bias(config.num_heads, positions, keys, heads)[None]
        mask = bias.masked_fill(~mask, float("-inf"))
    return mask


def _num_keys(positions: Tensor, cache: KVCache | None, fixed: bool) -> int:
    if cache is None:
        return len(positions)
    return cache.capacity if fixed else cache.length + len(positions)
