"""What streams over the depth share: where layers end, and weighted sums of what was put out before."""

from collections.abc import Sequence

from torch import Tensor

from widestream.streams.base import Block


def layer_ends(blocks: list[Block]) -> dict[int, int]:
    """Sites behind the last block of a layer, each with the number of layers so far; site 0, the embedding, has 0."""
    last = {block.layer: site for site, block in enumerate(blocks, start=1)}
    return {0: 0} | {site: number for number, site in enumerate(last.values(), start=1)}


def weighted_sum(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """sum_j weights_j sources_j: weights [n], sources n times [B, T, D] -> [B, T, D]."""
    total = weights[0] * sources[0]
    for weight, source in zip(weights[1:], sources[1:], strict=True):
        total = total + weight * source
    return total
