"""Activation checkpointing: keep what lies between two pieces of depth; compute a piece again to go back through it.

A piece changes nothing outside: what blocks share (`Context.shared`) is handed in and out, so that computing it again
does not write into what later blocks have seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from widestream.blocks.context import Context, Shared
from widestream.model.depth.eager import Blocks, Depth, Eager, Embedded, Exchanges
from widestream.streams.base import Block


@dataclass(frozen=True)
class Recomputed(Depth):
    """Layer by layer: kept are the state and the inputs that cross from one layer to the next."""

    layers: tuple[range, ...]
    """Sites behind the blocks of each layer; see `sites_of_layers`."""

    def __call__(self, stream: Exchanges, blocks: Blocks, embedded: Embedded, context: Context) -> Tensor:
        """See `Depth`."""
        if not torch.is_grad_enabled():
            return Eager()(stream, blocks, embedded, context)
        in_order = list(blocks)

        def layer(sites: range, state: Any, inputs: dict[str, Tensor], shared: Shared) -> Any:
            inside = replace(context, shared=shared.copy())
            for site in sites:
                state, inputs = stream.exchange(site, state, in_order[site - 1](inputs, inside))
            return state, inputs, inside.shared

        state, inputs = stream.exchange(0, stream.empty(context), embedded)
        passed = state, inputs, context.shared
        for sites in self.layers:
            passed = checkpoint(layer, sites, *passed, use_reentrant=False)
        context.shared.update(passed[2])
        return passed[1]["x"]


def sites_of_layers(layout: list[Block]) -> tuple[range, ...]:
    """Sites behind the blocks, layer by layer."""
    starts = [site for site, block in enumerate(layout, 1) if site == 1 or block.layer != layout[site - 2].layer]
    return tuple(range(first, end) for first, end in pairwise([*starts, len(layout) + 1]))


@dataclass(frozen=True)
class RecomputedBlocks(Depth):
    """Block by block: kept are the blocks' inputs. For tapes, whose exchanges happen once."""

    loop: Depth
    """What goes through the blocks."""

    def __call__(self, stream: Any, blocks: Blocks, embedded: Embedded, context: Context) -> Tensor:
        """See `Depth`."""
        again = blocks if not torch.is_grad_enabled() else [_Again(block) for block in blocks]
        return self.loop(stream, again, embedded, context)

    @property
    def compiled(self) -> bool:
        """See `Depth`."""
        return self.loop.compiled


@dataclass(frozen=True)
class _Again:
    """A block that is computed again in the backward pass."""

    block: Callable[[dict[str, Tensor], Context], Tensor]

    def __call__(self, inputs: dict[str, Tensor], context: Context) -> Tensor:
        written, shared = checkpoint(self._compute, inputs, context.shared, context, use_reentrant=False)
        context.shared.update(shared)
        return written

    def _compute(self, inputs: dict[str, Tensor], shared: Shared, context: Context) -> Any:
        inside = replace(context, shared=shared.copy())
        return self.block(inputs, inside), inside.shared
