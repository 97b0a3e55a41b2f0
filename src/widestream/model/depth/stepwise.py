"""Exchanges that a tape takes step by step, each repeated under autograd in the backward pass.

Two ways to the state in front of an exchange (`StreamSpec.undo`):

    Undone     the write is taken back from the state after it
    Replayed   depth is cut into stretches; the state at the start of each is kept, an anchor, with what was written in
               it, and the backward pass goes through the stretch once more, forwards, as it gets there. Nothing is
               undone, so any write will do, and states come back to the bit; while a stretch is gone through, all that
               autograd saves of its exchanges is alive. It is how mHC trains (arXiv 2512.24880, section 4.3.2).
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from widestream.streams.base import Stream


@dataclass
class Stretch:
    """Exchanges from one anchor to the next, as the forward pass leaves them."""

    first: int
    """Site of the first one."""
    before: Any
    """The state in front of it."""
    written: list[tuple[Tensor | None, ...]] = field(default_factory=list)
    """What was written at each."""


class Replay(NamedTuple):
    """An exchange gone through again, with a graph of its own."""

    inputs: list[Any]
    """Leaves of the state in front of it, and what was written."""
    outputs: list[Any]
    """What was read, and the leaves of the state behind it."""
    num_leaves: int
    """How many of the inputs are the state's."""


class Undone(torch.autograd.Function):
    """Any exchange that the stream can undo: repeated in the backward pass, with autograd for itself alone."""

    @staticmethod
    def forward(
        ctx: Any, tape: Any, number: int, num_written: int, token: Tensor | None, *tensors: Any
    ) -> tuple[Any, ...]:
        """What is written (site 0: token and position vectors), the stream's parameters -> token [], names, vectors."""
        stream: Stream = tape.stream
        written: list[Any] = [None if x is None else x.detach() for x in tensors[:num_written]]
        kept: tuple[Tensor, ...] = ()
        if number == 0:
            state = stream.write_embedding(tape.start, *written)
        else:
            state, kept = stream.write_keeping(number, tape.state, *written)
        read = stream.read(number, state)
        # Detached: what is read may be part of the state, and the tape must not hold on to the graph that holds it.
        tape.state = tree_map_only(Tensor, Tensor.detach, state)
        tape.advance(number)
        ctx.save_for_backward(*tensors[:num_written], *kept)
        ctx.set_materialize_grads(False)
        ctx.tape, ctx.number, ctx.num_written = tape, number, num_written
        ctx.autocast = _autocast(tensors[0])
        return tensors[0].new_zeros(()), tuple(read), *read.values()

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, _: Tensor | None, names: None, *grad_read: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Undo the write, repeat the exchange from there, and go back through it."""
        tape, stream, number = ctx.tape, ctx.tape.stream, ctx.number
        tape.rewind(number)
        saved = ctx.saved_tensors
        written, kept = saved[: ctx.num_written], saved[ctx.num_written :]
        with torch.autocast(*ctx.autocast):
            before = stream.undo(number, tape.state, *written, kept) if number else tape.start
            _, exchange = _repeat(stream, number, before, written)
        found = _go_back(tape, exchange, grad_read)
        tape.state = before
        tape.retreat()
        return None, None, None, None, *found


class Replayed(torch.autograd.Function):
    """Any exchange at all, found again from the anchor before it."""

    @staticmethod
    def forward(
        ctx: Any, tape: Any, number: int, num_written: int, token: Tensor | None, *tensors: Any
    ) -> tuple[Any, ...]:
        """See `Undone.forward`. The last exchange of a stretch keeps what the others need too: it goes back first."""
        stream: Stream = tape.stream
        written = tuple(None if x is None else x.detach() for x in tensors[:num_written])
        before = tape.state if number else tape.start
        state, read = stream.exchange(number, before, written[0] if number else written)
        tape.state = tree_map_only(Tensor, Tensor.detach, state)
        tape.advance(number)
        ctx.set_materialize_grads(False)
        ctx.tape, ctx.number, ctx.autocast = tape, number, _autocast(tensors[0])
        ctx.form = None
        if tape.goes_back:
            tape.stretch.written.append(written)
            if number in tape.anchor_sites or stream.readers[number] == "head":
                leaves, structure = tree_flatten((tape.stretch.before, tape.stretch.written))
                ctx.save_for_backward(*(x for x in leaves if isinstance(x, Tensor)))
                ctx.form = tape.stretch.first, structure, [None if isinstance(x, Tensor) else (x,) for x in leaves]
                tape.stretch = Stretch(number + 1, tape.state)
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
                    after, replay = _repeat(tape.stream, site, before, data)
                    tape.replayed.append(replay)
                    before = after
        found = _go_back(tape, tape.replayed.pop(), grad_read)
        tape.retreat()
        return None, None, None, None, *found


def _autocast(x: Tensor) -> tuple[str, torch.dtype, bool, bool]:
    """Arguments of an autocast that is as the one at hand; its cache would outlive the graphs made under it."""
    device = x.device.type
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), False


def _repeat(stream: Stream, site: int, before: Any, written: Any) -> tuple[Any, Replay]:
    """An exchange under autograd, from its inputs on alone; also gives the state behind it, detached."""
    leaves, structure = tree_flatten(before)
    leaves, written = [_leaf(x) for x in leaves], [_leaf(x) for x in written]
    with torch.enable_grad():
        after, read = stream.exchange(site, tree_unflatten(leaves, structure), written[0] if site else tuple(written))
    replay = Replay([*leaves, *written], [*read.values(), *tree_leaves(after)], len(leaves))
    return tree_map_only(Tensor, Tensor.detach, after), replay


def _go_back(tape: Any, replay: Replay, grad_read: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Gradients of what was written and of the stream's parameters; that of the state goes onto the tape."""
    inputs, outputs, num_leaves = replay
    grads = [*grad_read, *(tape.grad or [None] * (len(outputs) - len(grad_read)))]
    found = _gradients(outputs, grads, [*inputs, *tape.stream.parameters()])
    tape.grad = found[:num_leaves]
    return found[num_leaves:]


def _gradients(outputs: list[Any], grads: list[Tensor | None], inputs: list[Any]) -> list[Tensor | None]:
    """Gradients of all inputs that take one, from those outputs that have one."""
    pairs = [(x, grad) for x, grad in zip(outputs, grads, strict=True) if grad is not None and x.requires_grad]
    wanted = [isinstance(x, Tensor) and x.requires_grad for x in inputs]
    chosen = [x for x, takes in zip(inputs, wanted, strict=True) if takes]
    ends, starts = [x for x, _ in pairs], [grad for _, grad in pairs]
    found = iter(torch.autograd.grad(ends, chosen, starts, allow_unused=True)) if pairs else iter([None] * len(chosen))
    return [next(found) if takes else None for takes in wanted]


def _leaf(x: Any) -> Any:
    """A tensor of floating type as the beginning of a graph of its own; anything else as it is."""
    return x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
