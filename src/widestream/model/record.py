"""What goes through a decoder's exchanges, kept for measurements: written vectors, states, and what readers get."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from widestream.blocks.norm import Norm
from widestream.model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Exchanged:
    """One exchange of a forward pass."""

    site: int
    """0 is the embedding's, the last one the head's."""
    written: tuple[Tensor, ...]
    """What was written: tokens' and perhaps positions' vectors at site 0, then a block's output."""
    state: Any
    """The stream's state after the write."""
    normed: tuple[Tensor, ...]
    """What the norms in front of the reader took in: the stream as this reader sees it, at its own scale."""
    inputs: dict[str, Tensor]
    """What the reader received, by role."""


@contextmanager
def record_exchanges(model: Decoder) -> Iterator[list[Exchanged]]:
    """Collect every exchange of the forward passes inside.

    Written vectors and inputs are recorded as views of their own, so that the gradient of one is that through its
    exchange, or through its reader, alone. The model is eager inside, and saves its states.
    """
    stream, exchange, read = model.stream, model.stream.exchange, model.stream.read
    seen: list[Exchanged] = []
    norms = _NormInputs()

    def recorded_read(site: int, state: Any) -> dict[str, Tensor]:
        norms.reading = True
        inputs = read(site, state)
        norms.reading = False
        return inputs

    def recorded(site: int, state: Any, written: Any) -> tuple[Any, dict[str, Tensor]]:
        parts = tuple(None if x is None else x.view_as(x) for x in (written if site == 0 else (written,)))
        state, inputs = exchange(site, state, parts if site == 0 else parts[0])
        inputs = {role: x.view_as(x) for role, x in inputs.items()}
        seen.append(Exchanged(site, tuple(x for x in parts if x is not None), state, norms.take(), inputs))
        return state, inputs

    exchanges, compiled = model.exchanges, model._compiled_depth
    with ExitStack() as stack:
        for module in stream.modules():
            if isinstance(module, Norm):
                stack.callback(module.register_forward_pre_hook(norms).remove)
        model.exchanges = model._compiled_depth = None
        stream.exchange, stream.read = recorded, recorded_read
        try:
            yield seen
        finally:
            del stream.exchange, stream.read
            model.exchanges, model._compiled_depth = exchanges, compiled


class _NormInputs:
    """A hook on all norms of a stream that keeps what they take in during an exchange."""

    def __init__(self):
        self.reading = False
        self.read: list[Tensor] = []
        self.last: tuple[Tensor, ...] = ()

    def __call__(self, norm: Norm, arguments: tuple[Tensor]) -> None:
        self.last = arguments
        if self.reading:
            self.read.append(arguments[0])

    def take(self) -> tuple[Tensor, ...]:
        """Inputs of the norms of this exchange's read; a stream that needs them before has normed last in its write."""
        found = tuple(self.read) or self.last
        self.read, self.last = [], ()
        return found
