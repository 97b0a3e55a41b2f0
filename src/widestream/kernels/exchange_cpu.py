"""The exchange in one pass over the state, in C++ (exchange.cpp), compiled at first use for the machine at hand.

Tokens go to torch's own threads, `torch.get_num_threads()` of them; results do not depend on their number. Products
are summed in float32 whatever the types in memory are.
"""

import ctypes

import torch
from torch import Tensor

from widestream.kernels.compiled import Kernel, View, address
from widestream.kernels.exchange import Exchange, ReferenceExchange, Site, SiteGradients

TYPES = (torch.float32, torch.bfloat16)


class _Problem(ctypes.Structure):
    """Mirrors Problem in exchange.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("N", "V", "K", "R", "Q")),
        *(
            (name, ctypes.c_int64)
            for name in ("state_bf16", "grad_bf16", "normed", "layernorm", "gain_rows", "backward", "threads")
        ),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("source", "state", "grad_after", "grad_state")),
        *((name, ctypes.c_void_p) for name in ("write_keys", "read_keys", "gain")),
        *((name, ctypes.c_void_p) for name in ("grad_write", "grad_read", "grad_gain")),
        *((name, View) for name in ("data", "out", "grad_data")),
        ("parallel", ctypes.c_void_p),
    )


KERNEL = Kernel("exchange", _Problem)


def available(device: torch.device) -> str | None:
    """None where `CpuExchange` runs, else one sentence that says why not. Compiles if need be (seconds, once)."""
    if device.type != "cpu":
        return f"The compiled exchange runs on a CPU, not on {device.type}."
    return KERNEL.missing


class CpuExchange(Exchange):
    """One pass over the state. float16 and float64 tensors go the reference's way.

    Raises:
        RuntimeError: where `available` gives a reason.
    """

    def __init__(self):
        if KERNEL.missing is not None:
            raise RuntimeError(KERNEL.missing)

    def forward_(self, state, data, site, out, source=None):
        """See `Exchange`."""
        data = None if site.write_keys is None else data
        if not _supported(state, data, out):
            ReferenceExchange().forward_(state, data, site, out, source)
            return
        self._run(state, source, None, None, data, site, out, None, (None, None, None))

    def backward_(self, state, grad_state, data, site, grad_out, grad_data, grad_after=None):
        """See `Exchange`."""
        data = None if site.write_keys is None or grad_data is None else data
        if not _supported(state, grad_state, data, grad_out, grad_data):
            return ReferenceExchange().backward_(state, grad_state, data, site, grad_out, grad_data, grad_after)
        write = None if data is None else site.write_keys
        grad_write, grad_gain = (
            None if x is None else torch.empty(x.shape, dtype=torch.float32) for x in (write, site.gain)
        )
        grad_read = torch.empty(site.read_keys.shape, dtype=torch.float32)
        sums = (grad_write, grad_read, grad_gain)
        self._run(state, None, grad_state, grad_after, data, site, grad_out, grad_data, sums)
        return SiteGradients(_like(grad_write, write), grad_read.to(site.read_keys.dtype), _like(grad_gain, site.gain))

    def _run(
        self,
        state: Tensor,
        source: Tensor | None,
        grad_state: Tensor | None,
        grad_after: Tensor | None,
        data: Tensor | None,
        site: Site,
        out: Tensor,
        grad_data: Tensor | None,
        grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    ) -> None:
        """The library's call: forward without `grad_state`; else backward, filling the gradients of keys and gain."""
        source, grad_after = state if source is None else source, grad_state if grad_after is None else grad_after
        for x, twin in ((state, source), (grad_state, grad_after)):
            assert x is None or twin is None or (twin.shape, twin.dtype) == (state.shape, x.dtype)
            assert all(y is None or y.is_contiguous() for y in (x, twin))
        parameters = None if data is None else site.write_keys, site.read_keys, site.gain
        values = [None if x is None else x.detach().to(torch.float32).contiguous() for x in parameters]
        V, K = state.shape[1:]
        gain_rows = 0 if site.gain is None else site.gain.numel() // K
        assert gain_rows in (0, 1, V)
        assert (out.shape[1:], site.read_keys.shape) == ((V, out.shape[2]), (out.shape[2], K))
        assert data is None or site.write_keys is None or (*data.shape[1:], K) == (V, *site.write_keys.shape[::-1])
        KERNEL(
            *state.shape,
            0 if data is None else data.shape[2],
            out.shape[2],
            state.dtype == torch.bfloat16,
            grad_state is not None and grad_state.dtype == torch.bfloat16,
            site.norm != "none",
            site.norm == "layernorm",
            gain_rows,
            grad_state is not None,
            torch.get_num_threads(),
            site.eps,
            *(address(x) for x in (source, state, grad_after, grad_state, *values, *grads)),
            *(View.of(x) for x in (data, out, grad_data)),
        )


def _like(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if grad is None or parameter is None else grad.to(parameter.dtype)


def _supported(state: Tensor, *others: Tensor | None) -> bool:
    tensors = [state, *(x for x in others if x is not None)]
    assert all(x.device.type == "cpu" and len(x) == len(state) for x in tensors)
    return all(x.dtype in TYPES for x in tensors)
