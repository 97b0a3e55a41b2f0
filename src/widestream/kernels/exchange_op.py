"""The exchange as operators that torch.compile and autograd see, whatever computes it.

    widestream::exchange            the functional form: new state and what is read; has a derivative, which keeps the
                                    state after the write (a saved state for every exchange)
    widestream::exchange_forward_   `Exchange.forward_`, in place, without a derivative
    widestream::exchange_backward_  `Exchange.backward_`, likewise; both are for a caller that rebuilds states itself

Each runs the fastest implementation for the state's device and precision (`implementation`). Letters as in
`kernels.exchange`.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from widestream.kernels.exchange import Exchange, ReferenceExchange, Site, choose


def implementation(state: Tensor) -> Exchange:
    """The fastest implementation for a state; in float64, the reference."""
    return ReferenceExchange() if state.dtype == torch.float64 else choose("auto", state.device)


def exchange(
    state: Tensor, data: Tensor | None, site: Site, dtype: torch.dtype, heads_first: bool = False
) -> tuple[Tensor, Tensor]:
    """A write and a read that autograd records as one step.

    Args:
        state: [N, V, K] contiguous; left as it is.
        data: [N, V, R] to write, or None.
        site: keys, gain and norm.
        dtype: of what is read.
        heads_first: lay out what is read as [N, Q, V] in memory, as attention takes it.

    Returns:
        The state after the write [N, V, K], and what is read [N, V, Q].
    """
    return _exchange(state, data, *_spread(site), dtype, heads_first)


def exchange_forward_(state: Tensor, data: Tensor | None, site: Site, out: Tensor) -> None:
    """`Exchange.forward_` as an operator."""
    _forward_(state, data, *_spread(site), out)


def exchange_backward_(
    state: Tensor,
    grad_state: Tensor,
    data: Tensor | None,
    site: Site,
    grad_out: Tensor,
    grad_data: Tensor | None,
) -> "Gradients":
    """`Exchange.backward_` as an operator; the gradient of a key or gain that a site lacks is empty."""
    return Gradients(*_backward_(state, grad_state, data, *_spread(site), grad_out, grad_data))


class Gradients(NamedTuple):
    """`SiteGradients` as operators can return them; empty where a site has none."""

    write_keys: Tensor
    """[K, R]."""
    read_keys: Tensor
    """[Q, K]."""
    gain: Tensor
    """Shape of the gain."""


@torch.library.custom_op("widestream::exchange_forward_", mutates_args=("state", "out"))
def _forward_(
    state: Tensor,
    data: Tensor | None,
    write_keys: Tensor | None,
    read_keys: Tensor,
    gain: Tensor | None,
    norm: str,
    eps: float,
    out: Tensor,
) -> None:
    implementation(state).forward_(state, data, _site(write_keys, read_keys, gain, norm, eps), out)


@torch.library.custom_op("widestream::exchange_backward_", mutates_args=("state", "grad_state", "grad_data"))
def _backward_(
    state: Tensor,
    grad_state: Tensor,
    data: Tensor | None,
    write_keys: Tensor | None,
    read_keys: Tensor,
    gain: Tensor | None,
    norm: str,
    eps: float,
    grad_out: Tensor,
    grad_data: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    site = _site(write_keys, read_keys, gain, norm, eps)
    found = implementation(state).backward_(state, grad_state, data, site, grad_out, grad_data)
    nothing = read_keys.new_empty(0)
    return (
        nothing if found.write_keys is None else found.write_keys,
        found.read_keys,
        nothing.clone() if found.gain is None else found.gain,
    )


@_backward_.register_fake
def _(
    state: Tensor,
    grad_state: Tensor,
    data: Tensor | None,
    write_keys: Tensor | None,
    read_keys: Tensor,
    gain: Tensor | None,
    norm: str,
    eps: float,
    grad_out: Tensor,
    grad_data: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    def like(x: Tensor | None) -> Tensor:
        return read_keys.new_empty(0) if x is None else x.new_empty(x.shape)

    return like(write_keys if data is not None else None), like(read_keys), like(gain)


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
    after, out = state.clone(), _read_into(state, read_keys, dtype, heads_first)
    implementation(state).forward_(after, data, _site(write_keys, read_keys, gain, norm, eps), out)
    return after, out


@_exchange.register_fake
def _(
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
    return torch.empty_like(state), _read_into(state, read_keys, dtype, heads_first)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, data, write_keys, read_keys, gain, ctx.norm, ctx.eps, _, _ = inputs
    ctx.save_for_backward(output[0], data, write_keys, read_keys, gain)


def _differentiate(ctx: Any, grad_state: Tensor, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    state, data, write_keys, read_keys, gain = ctx.saved_tensors
    # Copies, because the saved state stays needed and a gradient may have other users. A gradient is float32 or wider.
    wide = torch.promote_types(state.dtype, torch.float32)
    grad = grad_state.to(wide, copy=True).contiguous()
    grad_data = None if data is None else torch.empty_like(data)
    found = Gradients(
        *_backward_(state.clone(), grad, data, write_keys, read_keys, gain, ctx.norm, ctx.eps, grad_out, grad_data)
    )
    return (
        grad.to(state.dtype),
        grad_data,
        None if data is None or write_keys is None else found.write_keys,
        found.read_keys,
        None if gain is None else found.gain,
        *(None,) * 4,
    )


torch.library.register_autograd("widestream::exchange", _differentiate, setup_context=_keep)


def _spread(site: Site) -> tuple[Tensor | None, Tensor, Tensor | None, str, float]:
    """A site as the arguments of an operator."""
    return site.write_keys, site.read_keys, site.gain, site.norm, site.eps


def _site(write_keys: Tensor | None, read_keys: Tensor, gain: Tensor | None, norm: str, eps: float) -> Site:
    kind: Literal["layernorm", "rmsnorm"] = "layernorm" if norm == "layernorm" else "rmsnorm"
    return Site(write_keys, read_keys, gain, kind, eps)


def _read_into(state: Tensor, read_keys: Tensor, dtype: torch.dtype, heads_first: bool) -> Tensor:
    """Memory for what is read: [N, V, Q], or the transpose of [N, Q, V]."""
    (N, V, _), Q = state.shape, read_keys.shape[0]
    if heads_first:
        return state.new_empty((N, Q, V), dtype=dtype).mT
    return state.new_empty((N, V, Q), dtype=dtype)
