"""What `kernels/` computes, as torch operations alone: for a modelling file that stands without the package.

Same names, arguments and results. `bundle.py` puts these in the place of the compiled ones.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.kernels.norm_cpu import turn


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
    """See kernels/norm_cpu.py; `one_pass` says that nobody asks."""
    x = x.float() if x.itemsize < 4 else x
    return turn(x if eps is None else rms_norm(x, 1, gain, eps), cos, sin).to(dtype)


def suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Never: attention is torch's."""
    return False


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """See kernels/attention_cpu.py; `suits` says that nobody asks."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)


def grouped_linear(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """See kernels/grouped.py."""
    last = ends.tolist()
    groups = zip([0, *last], last, weights, strict=False)
    return torch.cat([F.linear(x[first:end], matrix) for first, end, matrix in groups])
