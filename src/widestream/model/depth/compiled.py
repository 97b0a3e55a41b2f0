"""torch.compile around a way through the depth: all of it as one, or, where exchanges cannot be, block by block."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from widestream.blocks.context import Context
from widestream.model.depth.eager import Blocks, Depth, Embedded

VERSIONS = 8
"""In how many forms a block may be compiled: batch sizes, masks, with gradients or without."""


class Compiled(Depth):
    """Everything between embedding and head as one compiled function; masks are built outside, so shapes stay fixed.

    Args:
        depth: what is compiled.
        options: for `torch.compile`.
    """

    def __init__(self, depth: Depth, **options: Any):
        self.depth = depth
        self._function: Callable[..., Tensor] = torch.compile(depth.__call__, dynamic=False, **options)

    def __call__(self, stream: Any, blocks: Blocks, embedded: Embedded, context: Context) -> Tensor:
        """See `Depth`."""
        _allow_versions(blocks)
        return self._function(stream, blocks, embedded, context)

    @property
    def compiled(self) -> bool:
        """See `Depth`."""
        return True

    def describe(self) -> dict[str, Any]:
        """See `Depth`."""
        return self.depth.describe()


class CompiledBlocks(Depth):
    """Every block as a compiled function of its own; what lies between them is left as it is.

    Args:
        loop: what goes through the blocks.
        options: for `torch.compile`.
    """

    def __init__(self, loop: Depth, **options: Any):
        self.loop, self._options = loop, options
        self._functions: dict[Any, Callable[..., Tensor]] = {}

    def __call__(self, stream: Any, blocks: Blocks, embedded: Embedded, context: Context) -> Tensor:
        """See `Depth`."""
        _allow_versions(blocks)
        return self.loop(stream, [self._function(block) for block in blocks], embedded, context)

    @property
    def compiled(self) -> bool:
        """See `Depth`."""
        return True

    def _function(self, block: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if block not in self._functions:
            self._functions[block] = torch.compile(block, dynamic=False, **self._options)
        return self._functions[block]


def _allow_versions(blocks: Blocks) -> None:
    """Blocks share their code and differ in constants of their layer, so that each is a version of its own."""
    limits: Any = torch._dynamo.config
    needed = VERSIONS * sum(1 for _ in blocks)
    limits.recompile_limit = max(limits.recompile_limit, needed)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, needed)
