"""Save the writes, not the state: the backward pass rebuilds every state from the one after it.

A write of low rank can be taken back: RMT's X before a write is X after it minus sum_h w^(h) (x) y^(h), and y^(h) is
kept for its gradient anyway. So one state is alive in the forward pass, and one state and one gradient of it in the
backward pass, however deep the model is and however wide the state. It lies outside autograd, on a `Tape`.

Undoing rounds. Where that adds up (very deep models, states in bfloat16), exact copies of the state at a few sites,
`anchors`, take over in the backward pass.

A stream goes through `kernels/exchange.py` in place, or step by step: undo the write, or go once more from the anchor
before it, and take the gradients of that exchange alone (`StreamSpec.undo`; in_place.py, undo.py, replay.py).
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from widestream.blocks.context import Context, Shared
from widestream.kernels.exchange import Exchange, ReferenceExchange
from widestream.model.depth.eager import Blocks, Depth, Eager, Embedded
from widestream.model.depth.in_place import Enter, InPlace
from widestream.model.depth.replay import Replayed
from widestream.model.depth.tape import Tape
from widestream.model.depth.undo import Undone
from widestream.streams.base import Stream


@dataclass(frozen=True)
class Rebuilt(Depth):
    """Writes are kept, and states rebuilt. For streams whose spec has an `undo`."""

    exchange: Exchange = field(default_factory=ReferenceExchange)
    """What computes, where the stream's exchange is one of kernels/exchange.py."""
    anchors: int = 0
    """Exact copies of the state that a forward pass keeps, evenly spaced over the sites; where states are replayed,
    there is no other way to one."""
    bf16: bool = False
    """Whether the live state and its gradient are kept in bfloat16."""
    loop: Depth = field(default_factory=Eager)
    """What goes through the blocks: `Eager`, or blocks compiled or recomputed, each by itself."""

    def __call__(self, stream: Stream, blocks: Blocks, embedded: Embedded, context: Context) -> Tensor:
        """See `Depth`."""
        return self.loop(OnTape(stream, self), blocks, embedded, context)

    @property
    def compiled(self) -> bool:
        """See `Depth`."""
        return self.loop.compiled

    def describe(self) -> dict[str, Any]:
        """See `Depth`."""
        return {
            "memory": "writes",
            "kernel": type(self.exchange).__name__,
            "anchors": self.anchors,
            "state_precision": "bf16" if self.bf16 else "float32",
        }


class OnTape:
    """A stream's exchanges on a tape, in the stream's place in the loop; where a state would be goes a token [].

    Args:
        stream: whose exchanges these are.
        how: how states are rebuilt.
    """

    def __init__(self, stream: Stream, how: Rebuilt):
        self.stream, self.how = stream, how
        self.tape = Tape(stream, how.anchors, how.bf16)
        self.in_place = stream.undo_by == "kernel"
        self.node: type[torch.autograd.Function] = Replayed if stream.undo_by == "replay" else Undone
        """What autograd sees of an exchange that is not in place."""

    def empty(self, context: Context) -> None:
        """Begin. What blocks share holds the graph, and the graph the tape, which must not hold what they share."""
        self.tape.begin(replace(context, shared=Shared()))

    @torch.compiler.disable()
    def exchange(self, site: int, token: Tensor | None, written: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Stream.exchange`."""
        return (self._in_place if self.in_place else self._step_by_step)(site, token, written)

    def _step_by_step(self, site: int, token: Tensor | None, written: Any) -> tuple[Tensor, dict[str, Tensor]]:
        tensors = written if site == 0 else (written,)
        outputs: Any = self.node.apply(self.tape, site, len(tensors), token, *tensors, *self.stream.parameters())
        after, names, *read = outputs
        return after, dict(zip(names, read, strict=True))

    def _in_place(self, site: int, token: Tensor | None, written: Any) -> tuple[Tensor, dict[str, Tensor]]:
        if site == 0:
            embedded = self.stream.write_embedding(self.tape.start, *written)
            token, written = Enter.apply(self.tape, embedded), None  # pyright: ignore[reportAssignmentType]
        call = self.stream.as_kernel(site, written)
        keys = call.site
        outputs: Any = InPlace.apply(
            self.tape, self.how.exchange, site, call, token, call.data, keys.write_keys, keys.read_keys, keys.gain
        )
        after, read = outputs
        return after, call.hand_over(read.mT if call.by_heads else read)
