"""What streams with a history share: where layers end, and weighted sums of what was put out before.

Letters: B batch, T tokens, D width, n sources.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from widestream.streams.base import Block


def layer_ends(blocks: list[Block]) -> dict[int, int]:
    """Sites behind the last block of a layer, each with the number of layers so far; site 0, the embedding, has 0."""
    last = {block.layer: site for site, block in enumerate(blocks, start=1)}
    return {0: 0} | {site: number for number, site in enumerate(last.values(), start=1)}


def layer_starts(blocks: list[Block]) -> dict[int, int]:
    """Sites in front of the first block of a layer, each with the number of the layer, from 0."""
    first: dict[int, int] = {}
    for site, block in enumerate(blocks):
        first.setdefault(block.layer, site)
    return {site: number for number, site in enumerate(first.values())}


def static_sum(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """sum_j weights_j sources_j, the same weights for all tokens: [n] and n times [B, T, D] -> [B, T, D]."""
    total = weights[0] * sources[0]
    for weight, source in zip(weights[1:], sources[1:], strict=True):
        total = total + weight * source
    return total


def token_sum(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """sum_j weights[..., j] * sources[j], every token's own weights: [B, T, n] and n times [B, T, D] -> [B, T, D].

    Term by term: a stack of the sources would be a copy of the history that autograd keeps at every read.
    """
    first, *others = weights.unsqueeze(-2).unbind(-1)
    out = first * sources[0]
    for weight, source in zip(others, sources[1:], strict=True):
        out = torch.addcmul(out, weight, source)
    return out
