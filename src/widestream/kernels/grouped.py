"""Products of groups of rows, each with a matrix of its own: what a mixture of experts computes.

    widestream::grouped_linear   rows of group e times W_e^T
    widestream::grouped_outer    for every group, sum over its rows of a (x) b: the gradient of W_e

As operators with fixed shapes they compile into one graph and can be counted without computing, though where a group
ends is known to the data alone. In bfloat16 torch.nn.functional.grouped_mm computes them, without the host waiting for
a device; it takes nothing else on a GPU (torch 2.13). Otherwise a loop over the groups does.

Letters: M rows in order of their groups, E groups, I and O numbers in and out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import flop_counter

from widestream.kernels.autocasting import autocast_dtype

ALIGNED = 8
"""grouped_mm wants rows of whole 16 bytes: so many numbers of bfloat16."""


def grouped_linear(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Multiply every row with the matrix of its group.

    Args:
        x: [M, I].
        weights: [E, O, I], of the same type; under autocast both are cast.
        ends: behind the last row of each group [E] int32.

    Returns:
        [M, O].
    """
    dtype = autocast_dtype(x.device)
    if dtype is not None and x.dtype != torch.float64:
        x, weights = x.to(dtype), weights.to(dtype)
    return _linear(x, weights, ends)


@torch.library.custom_op("widestream::grouped_linear", mutates_args=())
def _linear(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    if _suits(x, weights):
        return F.grouped_mm(x, weights.mT, offs=ends)
    out = x.new_empty(len(x), weights.shape[1])
    for rows, matrix in zip(_groups(ends), weights, strict=True):
        torch.mm(x[rows], matrix.mT, out=out[rows])
    return out


@torch.library.custom_op("widestream::grouped_outer", mutates_args=())
def _outer(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """[M, O], [M, I] -> [E, O, I]."""
    if _suits(a, b):
        empty = torch.diff(ends, prepend=ends.new_zeros(1)) == 0  # nothing says that grouped_mm fills those
        return F.grouped_mm(a.mT, b, offs=ends).masked_fill_(empty[:, None, None], 0)
    out = a.new_empty(len(ends), a.shape[1], b.shape[1])
    for rows, matrix in zip(_groups(ends), out, strict=True):
        torch.mm(a[rows].mT, b[rows], out=matrix)
    return out


def _suits(a: Tensor, b: Tensor) -> bool:
    """Whether grouped_mm takes them."""
    if a.dtype != torch.bfloat16 or a.device.type not in ("cpu", "cuda") or not len(a):
        return False
    if a.is_cuda and torch.cuda.get_device_capability(a.device) < (8, 0):
        return False
    return all(stride == 1 or stride % ALIGNED == 0 for x in (a, b) for stride in x.stride())


def _groups(ends: Tensor) -> list[slice]:
    last = ends.tolist()
    return [slice(first, end) for first, end in zip([0, *last], last, strict=False)]


_linear.register_fake(lambda x, weights, ends: x.new_empty(x.shape[0], weights.shape[1]))
_outer.register_fake(lambda a, b, ends: a.new_empty(ends.shape[0], a.shape[1], b.shape[1]))


def _differentiate_linear(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weights, ends = ctx.saved_tensors
    grad = grad.contiguous()
    for_x, for_weights, _ = ctx.needs_input_grad
    return (
        _linear(grad, weights.mT, ends) if for_x else None,
        _outer(grad, x, ends) if for_weights else None,
        None,
    )


def _differentiate_outer(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    a, b, ends = ctx.saved_tensors
    return _linear(b, grad.contiguous(), ends), _linear(a, grad.mT, ends), None


def _keep(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_linear.register_autograd(_differentiate_linear, setup_context=_keep)
_outer.register_autograd(_differentiate_outer, setup_context=_keep)


@flop_counter.register_flop_formula(torch.ops.widestream.grouped_linear)
def _count_linear(x: Any, weights: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * x[0] * weights[1] * weights[2]


@flop_counter.register_flop_formula(torch.ops.widestream.grouped_outer)
def _count_outer(a: Any, b: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]
