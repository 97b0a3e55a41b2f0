"""Save the states, and compute every exchange as one operator (kernels/exchange_op.py).

Autograd and torch.compile see one step per exchange, which keeps the state after its write and makes one pass over it
forward and one backward; as torch operations, an exchange keeps its norm too and makes several.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from widestream.kernels.exchange_op import exchange
from widestream.streams.base import Stream


@dataclass(frozen=True)
class Saved:
    """States are saved, and exchanges are operators. For streams whose spec says `undo="kernel"`."""

    kernel: str
    """Name of the implementation that the device has, for a run's record."""

    def exchange(self, stream: Stream, site: int, state: Any, written: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Stream.exchange`; states are as there."""
        if site == 0:
            state, written = stream.write_embedding(state, *written), None
        call = stream.as_kernel(site, written)
        data = None if call.data is None else call.data.flatten(0, 1)
        after, read = exchange(state.flatten(0, 1), data, call.site, call.dtype, call.by_heads)
        windows = state.shape[:2]
        return after.unflatten(0, windows), call.hand_over(read.unflatten(0, windows))
