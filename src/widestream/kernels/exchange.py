"""One exchange of a matrix stream as one operation: write, norm statistics, gain and read, and its backward pass.

    write   X <- X + A w^T                 X [N, V, K], A [N, V, R], w [K, R]      (RMT paper, eqs. 18, 20, 23)
    norm    Xn = (X - mean) / std * gain   jointly over (V, K) of each token; RMSNorm: X / rms * gain; none: X * gain
    read    Y = Xn r^T                     r [Q, K], Y [N, V, Q]; Q is 3 R in front of attention, else R  (22, 25, 27)

Nothing is kept but what the caller holds. In place, `forward_` turns the state before the write into the state after
it, `backward_` turns it back and the gradient with it (the write is low-rank, so X - A w^T is the state before): only
one state and one gradient of it are alive, however deep the model is and however long its keys. A caller that saves
states keeps them apart: `forward_` reads the one before from `source`, `backward_` the gradient of the one after from
`grad_after`.

Three implementations share these signatures: this file (torch operations, the reference), `exchange_cpu` (one pass over
the state, compiled C++) and `exchange_triton` (one pass, on a GPU). `choose_exchange` picks one.

Letters: N tokens, V value axis D_v, K key axis D_k, R data vectors written, Q data vectors read.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from widestream.errors import UserError
from widestream.kernels.autocasting import no_autocast

KernelSetting = Literal["auto", "reference", "fused"]

SiteNorm = Literal["layernorm", "rmsnorm", "none"]

FUSED = {"cpu": ("exchange_cpu", "CpuExchange"), "cuda": ("exchange_triton", "TritonExchange")}
"""By type of device, module and class of the fused implementation; the module's `available(device)` gives None, or says
why it cannot be used."""


@dataclass(frozen=True, slots=True)
class Site:
    """What an exchange does, the same for all tokens."""

    write_keys: Tensor | None
    """w [K, R]; None where nothing is written."""
    read_keys: Tensor
    """r [Q, K]."""
    gain: Tensor | None
    """[V, K], [K] or None."""
    norm: SiteNorm
    """Whether the mean is subtracted; none: what is read is not normalised."""
    eps: float
    """Added to the variance (mean square)."""


@dataclass(frozen=True, slots=True)
class SiteGradients:
    """Gradients of a site's keys and gain, in their precision; None where it has none."""

    write_keys: Tensor | None
    """[K, R]."""
    read_keys: Tensor
    """[Q, K]."""
    gain: Tensor | None
    """Shape of the gain."""


class Exchange(Protocol):
    """An implementation. Its methods have these types, which a type checker takes from here."""

    def forward_(
        self, state: Tensor, data: Tensor | None, site: Site, out: Tensor, source: Tensor | None = None
    ) -> None:
        """Write `data` into `state`, then read into `out`.

        Args:
            state: [N, V, K] contiguous, float32 or bfloat16; becomes the state after the write.
            data: [N, V, R] of any strides and floating type; None where nothing is written.
            site: keys, gain and norm.
            out: [N, V, Q] of any strides and floating type; filled.
            source: the state before the write, like `state`, which is then filled; left as it is. None: in place.
        """
        ...

    def backward_(
        self,
        state: Tensor,
        grad_state: Tensor,
        data: Tensor | None,
        site: Site,
        grad_out: Tensor,
        grad_data: Tensor | None,
        grad_after: Tensor | None = None,
    ) -> SiteGradients:
        """The gradients of `forward_`, which is undone on the way.

        Args:
            state: [N, V, K], after the write; becomes the state before it.
            grad_state: [N, V, K] contiguous, of the state's precision or wider: gradient of the state after the write,
                from later exchanges; becomes that of the state before it, as which it goes into the other gradients.
            data: as in `forward_`.
            site: as in `forward_`.
            grad_out: [N, V, Q] of any strides: gradient of what was read.
            grad_data: [N, V, R] of any strides; filled. None where nothing is written.
            grad_after: gradient of the state after the write, like `grad_state`, which is then filled; left as it is,
                and so is `state`: nothing is undone. None: in place.
        """
        ...


class ReferenceExchange(Exchange):
    """Torch operations, in float32 or wider; runs wherever torch does."""

    def forward_(self, state, data, site, out, source=None):
        """See `Exchange`."""
        with torch.no_grad(), no_autocast(state.device):
            if source is not None:
                state.copy_(source)
            if data is not None and site.write_keys is not None:
                state.add_(_product(data, site.write_keys.mT))
            normed, _ = _normalise(_wide(state), site)
            out.copy_(_product(normed if site.gain is None else normed * site.gain, site.read_keys.mT))

    def backward_(self, state, grad_state, data, site, grad_out, grad_data, grad_after=None):
        """See `Exchange`."""
        gain, keys = site.gain, site.read_keys
        with torch.no_grad(), no_autocast(state.device):
            normed, rate = _normalise(_wide(state), site)
            grad_out = grad_out.to(normed.dtype)
            gained = normed if gain is None else normed * gain
            grad_keys = torch.einsum("nvq,nvk->qk", grad_out, gained).to(keys.dtype)
            grad = _product(grad_out, keys)
            grad_gain = None if gain is None else (grad * normed).sum_to_size(gain.shape).to(gain.dtype)
            grad = grad if gain is None else grad * gain
            if site.norm != "none":
                along = (grad * normed).mean((1, 2), keepdim=True)
                mean = grad.mean((1, 2), keepdim=True) if site.norm == "layernorm" else 0
                grad = (grad - mean - normed * along) * rate
            torch.add(grad_state if grad_after is None else grad_after, grad, out=grad_state)
            if data is None or site.write_keys is None or grad_data is None:
                return SiteGradients(None, grad_keys, grad_gain)
            stored = _wide(grad_state)
            grad_data.copy_(_product(stored, site.write_keys))
            grad_write = torch.einsum("nvk,nvr->kr", stored, data.to(stored.dtype)).to(site.write_keys.dtype)
            if grad_after is None:
                state.sub_(_product(data, site.write_keys.mT))
            return SiteGradients(grad_write, grad_keys, grad_gain)


def choose_exchange(setting: KernelSetting, device: torch.device) -> Exchange:
    """An implementation for a device.

    Args:
        setting: `auto`: the fused one where it can be used, else the reference.
        device: where states live.

    Raises:
        UserError: `fused` was asked for and cannot be used here; says why.
    """
    if setting == "reference":
        return ReferenceExchange()
    exchange = _fused(device)
    if not isinstance(exchange, str):
        return exchange
    if setting == "fused":
        raise UserError(f"train.kernels: fused cannot be had: {exchange.rstrip('.')}; use auto or reference.")
    return ReferenceExchange()


def _fused(device: torch.device) -> Exchange | str:
    """The fused implementation for a device, or why there is none."""
    module, name = FUSED.get(device.type, ("", ""))
    path = f"{__package__}.{module}"
    if not module or importlib.util.find_spec(path) is None:
        return f"there is no fused exchange for a {device.type} device"
    module = importlib.import_module(path)
    return module.available(device) or getattr(module, name)()


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.itemsize < 4 else x


def _product(data: Tensor, keys: Tensor) -> Tensor:
    """Data [N, V, R] times keys [R, K], in the wider of float32 and their types."""
    data, keys = _wide(data), _wide(keys)
    dtype = torch.promote_types(data.dtype, keys.dtype)
    return data.to(dtype) @ keys.to(dtype)


def _normalise(state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    """The normed state without gain, and one over its standard deviation (or root mean square) [N, 1, 1]."""
    if site.norm == "none":
        return state, state.new_ones(())
    centred = state - state.mean((1, 2), keepdim=True) if site.norm == "layernorm" else state
    rate = (centred.square().mean((1, 2), keepdim=True) + site.eps).rsqrt()
    return centred * rate, rate
