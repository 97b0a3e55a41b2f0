"""Position information inside attention: ALiBi slopes and rotary angles. Learned positions are in embedding.py."""

import torch
from torch import Tensor


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Tensor:
    """Slopes m_h, geometric from 2^(-8/H) to 2^-8 [H] (Press et al., arXiv 2108.12409; the published RMT code)."""
    return torch.pow(2.0, -8.0 * torch.arange(1, num_heads + 1, device=device) / num_heads)


def alibi_bias(num_heads: int, queries: Tensor, keys: Tensor) -> Tensor:
    """-(i - j) m_h for query positions i [Q] and key positions j [K] -> [H, Q, K]."""
    distance = (queries[:, None] - keys[None, :]).float()
    return -alibi_slopes(num_heads, queries.device)[:, None, None] * distance


def rotary_angles(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cos and sin of the rotary angles [T, head_dim / 2] at positions [T] (Su et al., arXiv 2104.09864)."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions.float()[:, None] * frequencies[None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs (first half, second half) of heads x [B, H, T, head_dim] by the angles of their positions."""
    cos, sin = angles
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
