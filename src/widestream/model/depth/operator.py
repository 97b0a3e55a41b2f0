"""Save the states, and compute every exchange as one operator (kernels/exchange_op.py).

Autograd and torch.compile see one step per exchange, which keeps the state after its write and makes one pass over it
forward and one backward; as torch operations, an exchange keeps its norm too and makes several.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from widestream.blocks.context import Context
from widestream.kernels.exchange_op import exchange
from widestream.model.depth.eager import Blocks, Depth, Eager, Embedded
from widestream.streams.base import Stream


@dataclass(frozen=True)
class Fused(Depth):
    """States are saved, and exchanges are operators. For streams whose spec says `undo="kernel"`."""

    kernel: str
    """Name of the implementation that the device has, for a run's record."""
    loop: Depth = field(default_factory=Eager)
    """What goes through the blocks: `Eager` or `Recomputed`."""

    def __call__(self, stream: Stream, blocks: Blocks, embedded: Embedded, context: Context) -> Tensor:
        """See `Depth`."""
        return self.loop(Operators(stream), blocks, embedded, context)

    def describe(self) -> dict[str, Any]:
        """See `Depth`."""
        return {"memory": "states", "kernel": self.kernel}


@dataclass(frozen=True)
class Operators:
    """A stream's exchanges as operators, in the stream's place in the loop."""

    stream: Stream
    """Whose they are."""

    def empty(self, context: Context) -> Any:
        """See `Stream.empty`."""
        return self.stream.empty(context)

    def exchange(self, site: int, state: Any, written: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Stream.exchange`; states are as there."""
        if site == 0:
            state, written = self.stream.write_embedding(state, *written), None
        call = self.stream.as_kernel(site, written)
        data = None if call.data is None else call.data.flatten(0, 1)
        after, read = exchange(state.flatten(0, 1), data, call.site, call.dtype, call.by_heads)
        windows = state.shape[:2]
        return after.unflatten(0, windows), call.hand_over(read.unflatten(0, windows))
