"""The loop: write, read, compute; and again. Every other way through the depth is this one with something around it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from widestream.blocks.context import Context

Embedded = tuple[Tensor, Tensor | None]
"""Vectors of the tokens [B, T, D] and, with learned positions, of the positions [1, T, D]."""
Blocks = Iterable[Callable[[dict[str, Tensor], Context], Tensor]]
"""The blocks in order: from their inputs, by role, to what is written."""


class Exchanges(Protocol):
    """What has exchanges: a stream (`Stream.empty`, `Stream.exchange`), or what stands in a stream's place."""

    def empty(self, context: Context) -> Any:
        """The state before the first write."""
        ...

    def exchange(self, site: int, state: Any, written: Any) -> tuple[Any, dict[str, Tensor]]:
        """A write, then a read: the new state, and what the next reader gets, by role."""
        ...


class Depth(ABC):
    """A way through the depth of a decoder: what computes between embedding and head, and what is kept of it.

    All ways compute the same numbers, up to rounding. One is chosen when a model is made (`plan_depth`), or for a while
    (`Decoder.using`).
    """

    @abstractmethod
    def __call__(self, stream: Any, blocks: Blocks, embedded: Embedded, context: Context) -> Tensor:
        """From the embedding to what the head reads [B, T, D].

        Args:
            stream: the decoder's, or what stands in its place.
            blocks: the decoder's.
            embedded: what is written at site 0.
            context: what the forward pass shares.
        """

    @property
    def compiled(self) -> bool:
        """Whether torch.compile is in it."""
        return False

    @property
    def edits(self) -> bool:
        """Whether it computes something else than the loop does, on purpose (`widestream.lens`)."""
        return False

    def around(self, loop: "Depth") -> "Depth":
        """Another way through the depth, with the edits of this one if it has any."""
        return loop

    def describe(self) -> dict[str, Any]:
        """What is kept for the backward pass and what computes, in words for a run's record."""
        return {"memory": "states"}


@dataclass(frozen=True)
class Eager(Depth):
    """The loop itself. Autograd saves the states."""

    def __call__(self, stream: Exchanges, blocks: Blocks, embedded: Embedded, context: Context) -> Tensor:
        """See `Depth`."""
        state, inputs = stream.exchange(0, stream.empty(context), embedded)
        for site, block in enumerate(blocks, start=1):
            state, inputs = stream.exchange(site, state, block(inputs, context))
        return inputs["x"]
