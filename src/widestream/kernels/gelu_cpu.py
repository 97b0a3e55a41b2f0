"""GELU by its tanh approximation in C++ (gelu.cpp), for a CPU.

    widestream::gelu            x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
    widestream::gelu_gradient   of x

torch's takes about ten times as long as moving the numbers does; this one computes the same to float32 rounding, in one
pass. Compiled at first use for the machine at hand; where that cannot be, and for everything else, torch's is used.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.kernels.compiled import Kernel, address

TYPES = (torch.float32, torch.bfloat16)
SMALLEST = 1 << 14
"""Numbers below which the call costs what it saves."""


class _Problem(ctypes.Structure):
    """Mirrors Problem in gelu.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "grad", "out")),
        *((name, ctypes.c_int64) for name in ("count", "bf16", "threads")),
        ("parallel", ctypes.c_void_p),
    )


KERNEL = Kernel("gelu", _Problem)


def gelu(x: Tensor, approximate: str) -> Tensor:
    """GELU of any tensor, on any device.

    Args:
        x: any shape.
        approximate: `tanh` or `none`, as torch has it.
    """
    if approximate == "tanh" and _suits(x):
        return _gelu(x)
    return F.gelu(x, approximate=approximate)


def _suits(x: Tensor) -> bool:
    """Compiled blocks keep torch's, which the compiler fuses with what is around it."""
    if torch.compiler.is_compiling() or x.numel() < SMALLEST:
        return False
    return x.device.type == "cpu" and x.dtype in TYPES and x.is_contiguous() and KERNEL.missing is None


@torch.library.custom_op("widestream::gelu", mutates_args=())
def _gelu(x: Tensor) -> Tensor:
    return _run(x, None)


@torch.library.custom_op("widestream::gelu_gradient", mutates_args=())
def _gradient(x: Tensor, grad: Tensor) -> Tensor:
    return _run(x, grad.contiguous())


_gelu.register_fake(torch.empty_like)
_gradient.register_fake(lambda x, grad: torch.empty_like(x))


def _differentiate(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    if torch.is_grad_enabled() or grad.dtype != x.dtype:  # gradients of gradients are torch's
        return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
    return _gradient(x, grad)


_gelu.register_autograd(_differentiate, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]))


def _run(x: Tensor, grad: Tensor | None) -> Tensor:
    out = torch.empty_like(x)
    given = address(grad)
    bf16 = x.dtype == torch.bfloat16
    KERNEL(address(x), given, address(out), x.numel(), bf16, torch.get_num_threads())
    return out
