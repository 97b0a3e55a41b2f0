"""Attention by FlexAttention: documents, windows and ALiBi as rules that the kernel evaluates where it needs them.

A mask in memory is [B, 1, T, T], with ALiBi [B, H, T, T], is read by every layer, and keeps SDPA from its flash kernel.
Here whole blocks of 128 x 128 pairs that no rule allows are left out (Dong et al., arXiv 2412.05496).

Letters: B batch, T tokens, H heads, K head width.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from widestream.blocks.alibi import ALL, alibi_slopes

SMALLEST_HEAD = 16
"""Head width below which torch has no FlexAttention kernel."""
VERSIONS = 1024
"""In how many forms FlexAttention may be compiled by itself: layers (their scales differ), masks, shapes."""


@dataclass(frozen=True)
class FlexMask:
    """What FlexAttention has in a mask's place."""

    blocks: BlockMask
    """Which pairs of tokens are allowed, and which blocks of them hold any."""
    bias: Callable[..., Tensor] | None
    """Caps a logit and adds ALiBi's bias to it."""


def make_flex_mask(
    positions: Tensor,
    segments: Tensor | None = None,
    window: int | None = None,
    alibi_heads: int | None = None,
    soft_cap: float | None = None,
    heads: slice = ALL,
) -> FlexMask:
    """The causal mask of a whole window, to be made outside of anything compiled.

    Args:
        positions: 0, 1, ... [T].
        segments: document of every token [B, T]; None: all are of one document.
        window: how many tokens back attention sees, the token itself counted; None: all.
        alibi_heads: H, where ALiBi's bias is to be added.
        soft_cap: c, where logits become c tanh(logit / c), in front of the bias.
        heads: those that attention is of.
    """
    slopes = None if alibi_heads is None else alibi_slopes(alibi_heads, positions.device)[heads]

    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        sees = q >= k
        if window is not None:
            sees = sees & (q - k < window)
        if segments is not None:
            sees = sees & (segments[b, q] == segments[b, k])
        return sees

    def change(logit: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if soft_cap is not None:
            logit = soft_cap * torch.tanh(logit / soft_cap)
        return logit if slopes is None else logit - slopes[h] * (q - k)

    num_rows, num_tokens = None if segments is None else len(segments), len(positions)
    blocks = create_block_mask(allowed, num_rows, None, num_tokens, num_tokens, device=positions.device)
    return FlexMask(blocks, None if slopes is None and soft_cap is None else change)


def flex(q: Tensor, k: Tensor, v: Tensor, mask: FlexMask, scale: float) -> Tensor:
    """softmax(q k^T scale + bias) v over the allowed pairs: q, k, v [B, H, T, K] -> [B, H, T, K].

    On a CPU there is no backward pass, and the logits are all in memory: for tests.
    """
    attend = flex_attention if q.device.type == "cpu" or torch.compiler.is_compiling() else _compiled()
    return attend(q, k, v, score_mod=mask.bias, block_mask=mask.blocks, scale=scale)


@functools.cache
def _compiled() -> Callable[..., Any]:
    """FlexAttention as a kernel, for blocks that are not compiled: plain torch operations would make all logits."""
    limits = torch._dynamo.config  # beyond them it would be plain torch operations again
    limits.recompile_limit = max(limits.recompile_limit, VERSIONS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, VERSIONS)
    return torch.compile(flex_attention, dynamic=False)
