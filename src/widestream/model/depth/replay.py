"""Exchanges that are gone through again: nothing is undone, so any write will do, and states come back to the bit.

Depth is cut into stretches. The state at the start of each is kept, an anchor, with what was written in it, and the
backward pass goes through the stretch once more, forwards, as it gets there; while it does, all that autograd saves of
the stretch's exchanges is alive. It is how mHC trains (arXiv 2512.24880, section 4.3.2).
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from widestream.model.depth.tape import Tape
from widestream.model.depth.undo import autocast_of, go_back, repeat
from widestream.streams.base import Stream


class Replayed(torch.autograd.Function):
    """Any exchange at all, found again from the anchor before it."""

    @staticmethod
    def forward(
        ctx: Any, tape: Tape, number: int, num_written: int, token: Tensor | None, *tensors: Any
    ) -> tuple[Any, ...]:
        """See `Undone.forward`. The last exchange of a stretch keeps what the others need too: it goes back first."""
        stream: Stream = tape.stream
        written = tuple(None if x is None else x.detach() for x in tensors[:num_written])
        before = tape.state if number else tape.start
        state, read = stream.exchange(number, before, written[0] if number else written)
        tape.advance(number, tree_map_only(Tensor, Tensor.detach, state))
        ctx.set_materialize_grads(False)
        ctx.tape, ctx.number, ctx.autocast = tape, number, autocast_of(tensors[0])
        ctx.form = None
        if tape.goes_back:
            tape.stretch.written.append(written)
            if number in tape.anchor_sites or stream.readers[number] == "head":
                stretch = tape.next_stretch()
                leaves, structure = tree_flatten((stretch.before, stretch.written))
                ctx.save_for_backward(*(x for x in leaves if isinstance(x, Tensor)))
                ctx.form = stretch.first, structure, [None if isinstance(x, Tensor) else (x,) for x in leaves]
        return tensors[0].new_zeros(()), tuple(read), *read.values()

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, _: Tensor | None, names: None, *grad_read: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Go through the stretch again if this is its end, and back through this exchange."""
        tape = ctx.tape
        tape.rewind(ctx.number)
        if ctx.form is not None:
            first, structure, others = ctx.form
            saved = iter(ctx.saved_tensors)
            before, written = tree_unflatten([next(saved) if x is None else x[0] for x in others], structure)
            with torch.autocast(*ctx.autocast):
                for site, data in enumerate(written, start=first):
                    after, repeated = repeat(tape.stream, site, before, data)
                    tape.repeated.append(repeated)
                    before = after
        grad_before, gradients = go_back(tape, tape.repeated.pop(), grad_read)
        tape.retreat(tape.state, grad_before)
        return None, None, None, None, *gradients
