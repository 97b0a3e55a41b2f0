"""ALiBi: biases of attention that grow with distance."""

import torch
from torch import Tensor

ALL = slice(None)


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Tensor:
    """Slopes m_h, geometric from 2^(-8/H) to 2^-8 [H] (Press et al., arXiv 2108.12409; the published RMT code)."""
    return torch.pow(2.0, -8.0 * torch.arange(1, num_heads + 1, device=device) / num_heads)


def alibi_bias(num_heads: int, queries: Tensor, keys: Tensor, heads: slice = ALL) -> Tensor:
    """-(i - j) m_h for query positions i [Q] and key positions j [K] -> [H, Q, K], or of some `heads` of these."""
    distance = (queries[:, None] - keys[None, :]).float()
    return -alibi_slopes(num_heads, queries.device)[heads, None, None] * distance
