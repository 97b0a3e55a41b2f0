"""Attention for training on a CPU: torch's flash kernel forward, and its backward pass in C++ (attention.cpp).

    widestream::attention            softmax(scale q k^T + bias) v, and the logarithms of the sums of exponentials
    widestream::attention_gradients  of q, k and v

torch's own backward pass takes most of attention's time on a CPU; this one computes the same, in float32. Compiled at
first use for the machine at hand. It has no gradients of gradients, as torch's has none.

Letters: B batch, H heads, T tokens, K width of a head.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.utils import flop_counter

from widestream.kernels.compiled import Kernel, View, address

TYPES = (torch.float32, torch.bfloat16)
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class _Problem(ctypes.Structure):
    """Mirrors Problem in attention.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("B", "H", "T", "D", "causal", "threads")),
        ("scale", ctypes.c_double),
        *((name, View) for name in ("q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v")),
        ("log_sums", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("bias_batch", "bias_head", "bias_query")),
        ("parallel", ctypes.c_void_p),
    )


KERNEL = Kernel("attention", _Problem)


def available() -> str | None:
    """None where `attention` can be used, else one sentence that says why not. Compiles if need be (seconds, once)."""
    return KERNEL.missing


def suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `attention` takes these: on a CPU, of one precision (float32 or bfloat16) and one shape."""
    alike = q.dtype == k.dtype == v.dtype and q.shape == k.shape == v.shape
    return alike and q.dtype in TYPES and q.device.type == "cpu"


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention that `suits`.

    Args:
        q: [B, H, T, K], whose last axis is contiguous.
        k: like q.
        v: like q.
        mask: what is added to the logits (float) or which pairs are allowed (bool), broadcastable to [B, H, T, T];
            None: causal.
        scale: of the logits.

    Returns:
        [B, H, T, K].
    """
    bias = None if mask is None else _bias(mask, q.dtype)
    return _attention(q, k, v, bias, scale)[0]


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


def _flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return FLASH(q, k, v, 0.0, bias is None, attn_mask=bias, scale=scale)


_attention = torch.library.custom_op("widestream::attention", _flash, mutates_args=())
_attention.register_fake(_flash)


@torch.library.custom_op("widestream::attention_gradients", mutates_args=())
def _gradients(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    log_sums = log_sums.contiguous()
    if bias is not None:
        bias = bias.to(torch.float32).expand(*q.shape[:3], k.shape[2])
        bias = bias if bias.stride(-1) == 1 else bias.contiguous()
    KERNEL(
        *q.shape, bias is None, torch.get_num_threads(), scale,
        *(View.of(x) for x in (q, k, v, out, grad_out, *grads)),
        address(log_sums), *((None, 0, 0, 0) if bias is None else (address(bias), *bias.stride()[:3])),
    )  # fmt: skip
    return grads


_gradients.register_fake(lambda grad_out, *inputs: tuple(torch.empty_like(x) for x in inputs[:3]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, bias, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, bias, *output)


def _differentiate(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, bias, out, log_sums = ctx.saved_tensors
    return (*_gradients(grad_out, q, k, v, out, log_sums, bias, ctx.scale), None, None)


torch.library.register_autograd("widestream::attention", _differentiate, setup_context=_keep)


@flop_counter.register_flop_formula(torch.ops.widestream.attention)
def _count(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return flop_counter.sdpa_flop_count(q, k, v)


@flop_counter.register_flop_formula(torch.ops.widestream.attention_gradients)
def _count_gradients(grad_out: Any, q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    # What is computed a second time is not counted, as nowhere in this package.
    return 2 * flop_counter.sdpa_flop_count(q, k, v)
