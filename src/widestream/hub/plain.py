"""What `kernels/` computes, as torch operations alone: for a modelling file that stands without the package.

Same names, arguments and results. `bundle.py` puts these in the place of the compiled ones.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu(x: Tensor, approximate: str) -> Tensor:
    """See kernels/gelu_cpu.py."""
    return F.gelu(x, approximate=approximate)


def gate(form: Literal["silu", "gelu_tanh"], x: Tensor) -> Tensor:
    """See kernels/gate_cpu.py."""
    gates, values = x.chunk(2, dim=-1)
    return (F.silu(gates) if form == "silu" else F.gelu(gates, approximate="tanh")) * values


def rms_norm(x: Tensor, axes: int, gain: Tensor | None, eps: float) -> Tensor:
    """See kernels/norm_cpu.py."""
    x = x.float() if x.itemsize < 4 else x
    normed = F.rms_norm(x, x.shape[x.dim() - axes :], None, eps)
    return normed if gain is None else normed * gain


def one_pass(x: Tensor) -> bool:
    """Never: norm and rotation are operations of their own."""
    return False


def norm_rotate(
    x: Tensor, gain: Tensor | None, eps: float | None, cos: Tensor, sin: Tensor, dtype: torch.dtype
) -> Tensor:
    """Only where `one_pass`."""
    raise NotImplementedError


def suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Never: attention is torch's."""
    return False


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Only where it `suits`."""
    raise NotImplementedError


def grouped_linear(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """See kernels/grouped.py."""
    last = ends.tolist()
    groups = zip([0, *last], last, weights, strict=False)
    return torch.cat([F.linear(x[first:end], matrix) for first, end, matrix in groups])
