"""Exchanges that the stream can undo: the write is taken back from the state after it (`Stream.undo`).

The exchange itself is repeated under autograd, for itself alone; replay.py does the same from another state.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from widestream.kernels.autocasting import autocast_dtype
from widestream.model.depth.tape import Repeated, Tape
from widestream.streams.base import Stream


class Undone(torch.autograd.Function):
    """Any exchange that the stream can undo: repeated in the backward pass, with autograd for itself alone."""

    @staticmethod
    def forward(
        ctx: Any, tape: Tape, number: int, num_written: int, token: Tensor | None, *tensors: Any
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
        tape.advance(number, tree_map_only(Tensor, Tensor.detach, state), copy=lambda state: state)
        ctx.save_for_backward(*tensors[:num_written], *kept)
        ctx.set_materialize_grads(False)
        ctx.tape, ctx.number, ctx.num_written = tape, number, num_written
        ctx.autocast = autocast_of(tensors[0])
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
            _, exchange = repeat(stream, number, before, written)
        grad_before, gradients = go_back(tape, exchange, grad_read)
        tape.retreat(before, grad_before)
        return None, None, None, None, *gradients


def autocast_of(x: Tensor) -> tuple[str, torch.dtype, bool, bool]:
    """Arguments of an autocast that is as the one at hand; its cache would outlive the graphs made under it."""
    device = "cpu" if x.is_meta else x.device.type  # which has none, and is not touched by the CPU's
    return device, torch.get_autocast_dtype(device), autocast_dtype(x.device) is not None, False


def repeat(stream: Stream, site: int, before: Any, written: Any) -> tuple[Any, Repeated]:
    """An exchange under autograd, from its inputs on alone; also gives the state behind it, detached."""
    leaves, structure = tree_flatten(before)
    leaves, written = [_leaf(x) for x in leaves], [_leaf(x) for x in written]
    with torch.enable_grad():
        after, read = stream.exchange(site, tree_unflatten(leaves, structure), written[0] if site else tuple(written))
    repeated = Repeated([*leaves, *written], [*read.values(), *tree_leaves(after)], len(leaves))
    return tree_map_only(Tensor, Tensor.detach, after), repeated


def go_back(
    tape: Tape, exchange: Repeated, grad_read: tuple[Tensor | None, ...]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of the leaves of the state in front of an exchange; of what was written and the stream's parameters."""
    inputs, outputs, num_leaves = exchange
    grads = [*grad_read, *(tape.grad or [None] * (len(outputs) - len(grad_read)))]
    gradients = _gradients(outputs, grads, [*inputs, *tape.stream.parameters()])
    return gradients[:num_leaves], gradients[num_leaves:]


def _gradients(outputs: list[Any], grads: list[Tensor | None], inputs: list[Any]) -> list[Tensor | None]:
    """Gradients of all inputs that take one, from those outputs that have one."""
    pairs = [(x, grad) for x, grad in zip(outputs, grads, strict=True) if grad is not None and x.requires_grad]
    wanted = [isinstance(x, Tensor) and x.requires_grad for x in inputs]
    chosen = [x for x, takes in zip(inputs, wanted, strict=True) if takes]
    ends, starts = [x for x, _ in pairs], [grad for _, grad in pairs]
    gradients = torch.autograd.grad(ends, chosen, starts, allow_unused=True) if pairs else [None] * len(chosen)
    in_order = iter(gradients)
    return [next(in_order) if takes else None for takes in wanted]


def _leaf(x: Any) -> Any:
    """A tensor of floating type as the beginning of a graph of its own; anything else as it is."""
    return x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
