"""Gated activations in C++ (gate.cpp), for a CPU: SiLU or GELU's tanh form of the gate, times the value.

    widestream::gate            act(gate) * value, of gates and values side by side
    widestream::gate_gradient   of both, side by side too

One pass over the numbers each way, and nothing but the input is kept for the backward pass; torch's operations make
several and keep the activated gate too. Compiled at first use for the machine at hand; where that cannot be, and for
everything else, torch's are used.
"""

import ctypes
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.kernels.compiled import Kernel, address
from widestream.kernels.gelu_cpu import SMALLEST, TYPES

Form = Literal["silu", "gelu_tanh"]


class _Problem(ctypes.Structure):
    """Mirrors Problem in gate.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "grad", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "neurons", "tanh", "bf16", "threads")),
        ("parallel", ctypes.c_void_p),
    )


KERNEL = Kernel("gate", _Problem)


def gate(form: Form, x: Tensor) -> Tensor:
    """Gates and values [..., 2 F] -> act(gate) * value [..., F], on any device."""
    if _suits(x):
        return _gate(x, form)
    gates, values = x.chunk(2, dim=-1)
    return _act(form, gates) * values


def _act(form: str, x: Tensor) -> Tensor:
    return F.silu(x) if form == "silu" else F.gelu(x, approximate="tanh")


def _suits(x: Tensor) -> bool:
    """Compiled blocks keep torch's, which the compiler fuses with what is around it."""
    if torch.compiler.is_compiling() or x.numel() < SMALLEST:
        return False
    return x.device.type == "cpu" and x.dtype in TYPES and x.is_contiguous() and KERNEL.missing is None


@torch.library.custom_op("widestream::gate", mutates_args=())
def _gate(x: Tensor, form: str) -> Tensor:
    return _run(x, form, None, x.new_empty(*x.shape[:-1], x.shape[-1] // 2))


@torch.library.custom_op("widestream::gate_gradient", mutates_args=())
def _gradient(x: Tensor, grad: Tensor, form: str) -> Tensor:
    return _run(x, form, grad.contiguous(), torch.empty_like(x))


_gate.register_fake(lambda x, form: x.new_empty(*x.shape[:-1], x.shape[-1] // 2))
_gradient.register_fake(lambda x, grad, form: torch.empty_like(x))


def _setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, ctx.form = inputs
    ctx.save_for_backward(x)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    if not torch.is_grad_enabled() and grad.dtype == x.dtype:
        return _gradient(x, grad, ctx.form), None
    gates, values = x.chunk(2, dim=-1)  # gradients of gradients are torch's
    if ctx.form == "silu":
        s = gates.sigmoid()  # torch's own derivative of SiLU has none
        for_gates = grad * values * s * (1 + gates * (1 - s))
    else:
        for_gates = torch.ops.aten.gelu_backward(grad * values, gates, approximate="tanh")
    return torch.cat((for_gates, grad * _act(ctx.form, gates)), dim=-1), None


_gate.register_autograd(_differentiate, setup_context=_setup)


def _run(x: Tensor, form: str, grad: Tensor | None, out: Tensor) -> Tensor:
    if not x.numel():
        return out
    neurons, given = x.shape[-1] // 2, address(grad)
    sizes = x.numel() // (2 * neurons), neurons
    bf16 = x.dtype == torch.bfloat16
    KERNEL(address(x), given, address(out), *sizes, form == "gelu_tanh", bf16, torch.get_num_threads())
    return out
