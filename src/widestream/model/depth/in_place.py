"""Exchanges in place, by kernels/exchange.py: the write is undone by arithmetic, forward and back in one pass each."""

from typing import Any

import torch
from torch import Tensor

from widestream.kernels.exchange import Exchange, Site
from widestream.model.depth.tape import Tape
from widestream.streams.base import KernelCall


class Enter(torch.autograd.Function):
    """X_0 goes onto the tape; its gradient comes back from there."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, X: Tensor) -> Tensor:
        """X [B, T, V, K] -> token []."""
        ctx.tape, ctx.shape = tape, X.shape
        ctx.set_materialize_grads(False)
        tape.enter(X)
        if ctx.needs_input_grad[1]:
            # Changed in place from here on, also by kernels of which autograd knows nothing: had a stream saved X_0 for
            # its own backward pass, that would now be an error and not a wrong number.
            torch.autograd.graph.increment_version(X)
        return X.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient that is left when all exchanges have been undone."""
        return None, ctx.tape.leave().view(ctx.shape)


class InPlace(torch.autograd.Function):
    """An exchange by kernels/exchange.py on the tape's state."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: Tape,
        exchange: Exchange,
        number: int,
        call: KernelCall,
        token: Tensor,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Data, keys and gain, which are in `call` too -> token [], and what is read, by heads [B, T, Q, V] or not."""
        values, read = tape.state.shape[1], len(call.site.read_keys)
        shape = (*tape.windows, read, values) if call.by_heads else (*tape.windows, values, read)
        out = tape.state.new_empty(shape, dtype=call.dtype)
        by_columns = out.mT if call.by_heads else out
        exchange.forward_(tape.state, _flat(call.data), call.site, by_columns.flatten(0, 1))
        tape.advance(number, tape.state, copy=torch.clone)
        ctx.save_for_backward(*tensors)
        ctx.tape, ctx.exchange, ctx.number, ctx.by_heads = tape, exchange, number, call.by_heads
        ctx.norm = call.site.norm, call.site.eps
        return token.new_zeros(()), out

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, _: Tensor | None, grad_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Undo the write on the tape, and take its gradient to the state before."""
        tape, (data, write_keys, read_keys, gain) = ctx.tape, ctx.saved_tensors
        tape.rewind(ctx.number)
        state = tape.state
        grad = torch.zeros_like(state) if tape.grad is None else tape.grad
        grad_data = None if data is None else _like(data)
        site = Site(write_keys, read_keys, gain, *ctx.norm)
        by_columns = (grad_out.mT if ctx.by_heads else grad_out).flatten(0, 1)
        gradients = ctx.exchange.backward_(state, grad, _flat(data), site, by_columns, _flat(grad_data))
        tape.retreat(state, grad)
        return None, None, None, None, None, grad_data, gradients.write_keys, gradients.read_keys, gradients.gain


def _flat(x: Tensor | None) -> Tensor | None:
    """[B, T, ...] -> [N, ...]."""
    return None if x is None else x.flatten(0, 1)


def _like(data: Tensor) -> Tensor:
    """Room for the gradient of vectors [B, T, V, R], side by side or one after the other as they are."""
    B, T, V, R = data.shape
    return data.new_empty(B, T, R, V).mT if data.stride(-2) == 1 else data.new_empty(data.shape)
