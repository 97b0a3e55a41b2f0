"""RMSNorm, and the rotation of heads behind it, in one pass in C++ (norm.cpp), for a CPU.

    widestream::norm_rotate             x / rms(x) * gain, then pairs turned by the angles of their tokens
    widestream::norm_rotate_gradients   of x and of the gain

torch's RMSNorm on a CPU is a chain of operations that leaves three copies of its input to the backward pass. Here the
input and one number for each row are kept, as LayerNorm keeps them, whoever computes: C++ compiled at first use for the
machine at hand, or torch's operations where that cannot be and for other types.
"""

import ctypes
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.kernels.compiled import Kernel, address
from widestream.kernels.gelu_cpu import TYPES

PARTS = 64
"""Ranges of rows that threads take and that the gain's gradient is added up by, whatever the number of threads."""


class _Rows(ctypes.Structure):
    """Mirrors Rows in norm.cpp."""

    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("token", "head", "bf16")))


class _Problem(ctypes.Structure):
    """Mirrors Problem in norm.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "heads", "width", "parts", "threads")),
        ("eps", ctypes.c_double),
        *((name, _Rows) for name in ("x", "out", "grad", "grad_x")),
        *((name, ctypes.c_void_p) for name in ("scales", "gain")),
        ("gain_step", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("sums", "grad_gain")),
        ("gains", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("cos", "sin")),
        *((name, ctypes.c_int64) for name in ("turned", "positions")),
        ("parallel", ctypes.c_void_p),
    )


KERNEL = Kernel("norm", _Problem)


def rms_norm(x: Tensor, axes: int, gain: Tensor | None, eps: float) -> Tensor:
    """RMSNorm, x / sqrt(mean(x^2) + eps) * gain, jointly over the last axes, on any device.

    Args:
        x: any shape.
        axes: how many.
        gain: broadcasts against the last axes of x.
        eps: of the mean square.

    Returns:
        Of x's shape, in float32 or wider: statistics in bfloat16 would cost accuracy.
    """
    if one_pass(x):
        return _norm_rotate(x, gain, None, None, axes, eps, _wide(x).dtype)[0]
    shape = x.shape[x.dim() - axes :]
    if gain is None or gain.shape == shape:
        return F.rms_norm(_wide(x), shape, gain, eps)
    return F.rms_norm(_wide(x), shape, None, eps) * gain


def one_pass(x: Tensor) -> bool:
    """Whether `rms_norm` and `norm_rotate` are one operator: a GPU has its own, and torch.compile fuses torch's."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def norm_rotate(
    x: Tensor, gain: Tensor | None, eps: float | None, cos: Tensor, sin: Tensor, dtype: torch.dtype
) -> Tensor:
    """RMSNorm of every head, then rotation, where that is `one_pass`.

    Args:
        x: heads [B, T, H, K].
        gain: of a head [K] or of all [H, K].
        eps: of the mean square; None: no norm, which has no gain.
        cos: of the first d numbers of a head, of which i and i + d / 2 are a pair [T, 1, d / 2] or [B, T, 1, d / 2].
        sin: the same.
        dtype: of what is returned.

    Returns:
        [B, T, H, K].
    """
    return _norm_rotate(x, gain, cos, sin, 1, eps, dtype)[0]


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first d numbers of heads, as torch operations; see `norm_rotate`."""
    width = 2 * cos.shape[-1]
    first, second, rest = x.split((width // 2, width // 2, x.shape[-1] - width), dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


@torch.library.custom_op("widestream::norm_rotate", mutates_args=())
def _norm_rotate(
    x: Tensor, gain: Tensor | None, cos: Tensor | None, sin: Tensor | None, axes: int, eps: float | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What is asked for, and one over the root mean square of every row; without a norm nothing."""
    if not _suits(x, dtype, gain, cos, axes):
        scales = _wide(x).new_empty(0) if eps is None else _scales(x, axes, eps)
        return _torchs(x, scales, gain, cos, sin, axes, dtype), scales
    out, scales = _empty(x, gain, cos, sin, axes, eps, dtype)
    _run((x, out, None, None), scales, eps or 0.0, _full(gain, x, axes), None, cos, sin, axes)
    return out, scales


def _empty(x: Tensor, gain: Any, cos: Any, sin: Any, axes: int, eps: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Room for what `_norm_rotate` returns."""
    shape = (0,) if eps is None else x.shape[: x.dim() - axes]
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


@torch.library.custom_op("widestream::norm_rotate_gradients", mutates_args=())
def _gradients(
    grad: Tensor, x: Tensor | None, scales: Tensor, gain: Tensor | None, cos: Tensor | None, sin: Tensor | None,
    axes: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Of x, which has this type, and of the gain; without a gain nothing. Without x there was no norm."""
    if not _suits(grad, dtype, gain, cos, axes):
        return _torchs_gradients(grad, x, scales, gain, cos, sin, axes, dtype)
    grad_x, full = grad.new_empty(grad.shape, dtype=dtype), _full(gain, grad, axes)
    grad_full = scales.new_empty(0) if full is None else torch.empty_like(full)
    _run((x, None, grad, grad_x), scales, 0.0, full, grad_full, cos, sin, axes)
    return grad_x, grad_full if gain is None else grad_full.sum_to_size(gain.shape)


def _empty_gradients(
    grad: Tensor, x: Any, scales: Tensor, gain: Tensor | None, cos: Any, sin: Any, axes: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    grad_gain = scales.new_empty(0) if gain is None else torch.empty_like(gain)
    return grad.new_empty(grad.shape, dtype=dtype), grad_gain


_norm_rotate.register_fake(_empty)
_gradients.register_fake(_empty_gradients)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, gain, cos, sin, ctx.axes, ctx.eps, _ = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(None if ctx.eps is None else x, output[1], gain, cos, sin)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, scales, gain, cos, sin = ctx.saved_tensors
    compute = _gradients
    if torch.is_grad_enabled():  # gradients of gradients are torch's
        scales, compute = scales if x is None else _scales(x, ctx.axes, ctx.eps), _torchs_gradients
    grad_x, grad_gain = compute(grad, x, scales, gain, cos, sin, ctx.axes, ctx.dtype)
    return grad_x, None if gain is None else grad_gain, None, None, None, None, None


_norm_rotate.register_autograd(_differentiate, setup_context=_keep)


# ---- in torch


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.itemsize < 4 else x


def _last(axes: int) -> tuple[int, ...]:
    return tuple(range(-axes, 0))


def _scales(x: Tensor, axes: int, eps: float) -> Tensor:
    return (_wide(x).square().mean(_last(axes)) + eps).rsqrt()


def _torchs(
    x: Tensor, scales: Tensor, gain: Tensor | None, cos: Tensor | None, sin: Tensor | None, axes: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    out = _wide(x)
    if scales.numel():
        out = out * scales[(..., *[None] * axes)]
    if gain is not None:
        out = out * gain
    if cos is not None and sin is not None:
        out = turn(out, cos, sin)
    return out.to(dtype)


def _torchs_gradients(
    grad: Tensor, x: Tensor | None, scales: Tensor, gain: Tensor | None, cos: Tensor | None, sin: Tensor | None,
    axes: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad = _wide(grad)
    if cos is not None and sin is not None:
        grad = turn(grad, cos, -sin)
    if x is None:
        return grad.to(dtype), grad.new_empty(0)
    scales = scales[(..., *[None] * axes)]
    normed = _wide(x) * scales
    grad_gain = scales.new_empty(0)
    if gain is not None:
        grad_gain = (grad * normed).sum_to_size(gain.shape).to(gain.dtype)
        grad = grad * gain
    grad_x = (grad - normed * (grad * normed).mean(_last(axes), keepdim=True)) * scales
    return grad_x.to(dtype), grad_gain


# ---- in C++


def _suits(x: Tensor, dtype: torch.dtype, gain: Tensor | None, cos: Tensor | None, axes: int) -> bool:
    others = (other.dtype for other in (gain, cos) if other is not None)
    types = x.dtype in TYPES and dtype in TYPES and all(other == torch.float32 for other in others)
    by_head = gain is None or gain.dim() <= axes or gain.shape[:-axes] == x.shape[-axes - 1 : -axes]
    return types and by_head and x.numel() > 0 and KERNEL.missing is None


def _full(gain: Tensor | None, x: Tensor, axes: int) -> Tensor | None:
    """A gain spread over the axes that are normalised, and over that in front of them where it reaches so far."""
    if gain is None:
        return None
    shape = x.shape[-axes:] if gain.dim() <= axes else x.shape[-axes - 1 :]
    return gain.expand(shape).contiguous()


def _run(
    tensors: tuple[Tensor | None, ...], scales: Tensor, eps: float, gain: Tensor | None, grad_gain: Tensor | None,
    cos: Tensor | None, sin: Tensor | None, axes: int,
) -> None:  # fmt: skip
    """Carry out one direction: of x and out, or of x, grad and grad_x. Heads H are the axis before the norm's."""
    given = next(x for x in (tensors[0], tensors[2]) if x is not None)
    width, heads = math.prod(given.shape[-axes:]), given.shape[-axes - 1] if given.dim() > axes else 1
    laid = [_lay(x, heads, width) for x in tensors]
    count = given.numel() // width
    parts, gains = min(PARTS, count), 0 if grad_gain is None else grad_gain.numel()
    sums = scales.new_empty(parts, gains) if gains else None
    by_head = width if gain is not None and gain.dim() > axes else 0
    cos, sin = (None if angles is None else angles.contiguous() for angles in (cos, sin))
    turned, positions = (0, 1) if cos is None else (2 * cos.shape[-1], cos.numel() // cos.shape[-1])
    KERNEL(
        count // heads, heads, width, parts, torch.get_num_threads(), eps, *(_rows(x, heads, width) for x in laid),
        address(scales) if scales.numel() else None, address(gain), by_head, address(sums), address(grad_gain), gains,
        address(cos), address(sin), turned, positions,
    )  # fmt: skip


def _lay(x: Tensor | None, heads: int, width: int) -> Tensor | None:
    """A tensor as it lies, if its rows can be walked through as [N, H, W], else a copy."""
    if x is None or x.is_contiguous():
        return x
    rows = x.reshape(-1, heads, width)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _rows(x: Tensor | None, heads: int, width: int) -> _Rows:
    if x is None:
        return _Rows()
    strides = (heads * width, width) if x.is_contiguous() else x.stride()[:2]
    return _Rows(address(x), *strides, x.dtype == torch.bfloat16)
