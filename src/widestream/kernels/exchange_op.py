"""The exchange as an operator that torch.compile and autograd see, whatever computes it.

    widestream::exchange            new state and what is read; its derivative keeps the state after the write
    widestream::exchange_gradients  that derivative

Nothing is changed in place and no state is copied: one is read, the next one written. Each runs the fastest
implementation for the state's device and precision (`implementation`). Letters as in `kernels.exchange`.
"""

from typing import Any, cast

import torch
from torch import Tensor

from widestream.kernels.exchange import Exchange, ReferenceExchange, Site, SiteNorm, choose_exchange


def implementation(state: Tensor) -> Exchange:
    """The fastest implementation for a state; in float64, the reference."""
    return ReferenceExchange() if state.dtype == torch.float64 else choose_exchange("auto", state.device)


def exchange(
    state: Tensor, data: Tensor | None, site: Site, dtype: torch.dtype, heads_first: bool = False
) -> tuple[Tensor, Tensor]:
    """A write and a read that autograd records as one step.

    Args:
        state: [N, V, K]; left as it is.
        data: [N, V, R] to write, or None.
        site: keys, gain and norm.
        dtype: of what is read.
        heads_first: lay out what is read as [N, Q, V] in memory, as attention takes it.

    Returns:
        The state after the write [N, V, K], and what is read [N, V, Q].
    """
    return _exchange(state, data, site.write_keys, site.read_keys, site.gain, site.norm, site.eps, dtype, heads_first)


@torch.library.custom_op("widestream::exchange", mutates_args=())
def _exchange(
    state: Tensor,
    data: Tensor | None,
    write_keys: Tensor | None,
    read_keys: Tensor,
    gain: Tensor | None,
    norm: str,
    eps: float,
    dtype: torch.dtype,
    heads_first: bool,
) -> tuple[Tensor, Tensor]:
    after, out = _room(state, read_keys, dtype, heads_first)
    site = _site(write_keys, read_keys, gain, norm, eps)
    implementation(state).forward_(after, data, site, out, state.contiguous())
    return after, out


@_exchange.register_fake
def _(state: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    _, _, read_keys, _, _, _, dtype, heads_first = inputs
    return _room(state, read_keys, dtype, heads_first)


@torch.library.custom_op("widestream::exchange_gradients", mutates_args=())
def _gradients(
    state: Tensor,
    grad_after: Tensor,
    data: Tensor | None,
    write_keys: Tensor | None,
    read_keys: Tensor,
    gain: Tensor | None,
    norm: str,
    eps: float,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of the state before the write, data, keys and gain; empty where there is none. `state` is the one after."""
    grad_after = grad_after.contiguous()
    grad, grad_data = torch.empty_like(grad_after), None if data is None else torch.empty_like(data)
    site = _site(write_keys, read_keys, gain, norm, eps)
    gradients = implementation(state).backward_(state, grad, data, site, grad_out, grad_data, grad_after)
    # What an operator gives must not share memory, and the last three may.
    optional = (gradients.write_keys, gradients.read_keys, gradients.gain)
    grad_write, grad_read, grad_gain = (
        read_keys.new_empty(0) if x is None else x.clone(memory_format=torch.contiguous_format) for x in optional
    )
    grad_data = read_keys.new_empty(0) if grad_data is None else grad_data
    return grad, grad_data, grad_write, grad_read, grad_gain


@_gradients.register_fake
def _(state: Tensor, _: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    data, write_keys, read_keys, gain = inputs[:4]

    def like(x: Tensor | None) -> Tensor:
        return read_keys.new_empty(0) if x is None else torch.empty_like(x)

    written = write_keys if data is not None else None
    return (
        torch.empty_like(state), like(data), like(written).contiguous(), like(read_keys).contiguous(),
        like(gain).contiguous(),
    )  # fmt: skip


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, data, write_keys, read_keys, gain, ctx.norm, ctx.eps, _, _ = inputs
    ctx.save_for_backward(output[0], data, write_keys, read_keys, gain)


def _differentiate(ctx: Any, grad_after: Tensor, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    state, data, write_keys, read_keys, gain = ctx.saved_tensors
    grad, grad_data, grad_write, grad_read, grad_gain = _gradients(
        state, grad_after, data, write_keys, read_keys, gain, ctx.norm, ctx.eps, grad_out
    )
    return (
        grad,
        None if data is None else grad_data,
        None if data is None or write_keys is None else grad_write,
        grad_read,
        None if gain is None else grad_gain,
        *(None,) * 4,
    )


torch.library.register_autograd("widestream::exchange", _differentiate, setup_context=_keep)


def _site(write_keys: Tensor | None, read_keys: Tensor, gain: Tensor | None, norm: str, eps: float) -> Site:
    return Site(write_keys, read_keys, gain, cast(SiteNorm, norm), eps)


def _room(state: Tensor, read_keys: Tensor, dtype: torch.dtype, heads_first: bool) -> tuple[Tensor, Tensor]:
    """Memory for the next state [N, V, K], and for what is read: [N, V, Q], or the transpose of [N, Q, V]."""
    (N, V, _), Q = state.shape, read_keys.shape[0]
    shape = (N, Q, V) if heads_first else (N, V, Q)
    out = state.new_empty(shape, dtype=dtype)
    return state.new_empty(state.shape), out.mT if heads_first else out
