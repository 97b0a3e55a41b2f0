"""A vision transformer of torch's own modules, with a residual stream of any kind: no tokens, nothing causal.

    python examples/vit.py mhc lanes=4
    python examples/vit.py attn_res

It learns to tell which quarter of a noisy picture is the brightest.
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widestream import residual


class Attention(nn.Module):
    """torch's attention, every patch with every other."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        return self.attention(x, x, x, need_weights=False)[0]


class ViT(nn.Module):
    """Patches, branches, and a head that reads the first, added vector."""

    def __init__(self, kind: str, dim: int = 48, heads: int = 4, layers: int = 3, classes: int = 4, **settings):
        super().__init__()
        self.patches = nn.Conv2d(1, dim, kernel_size=4, stride=4)
        self.first = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 17, dim))
        mlps = (nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)) for _ in range(layers))
        self.branches = nn.ModuleList(b for mlp in mlps for b in (Attention(dim, heads), mlp))
        self.stream = residual(kind, dim, sites=2 * layers, norm="layernorm", heads=heads, **settings)
        self.head = nn.Linear(dim, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 1, 16, 16] -> [B, classes]."""
        x = self.patches(pictures).flatten(2).mT
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.stream.run(x, self.branches)[:, 0])


def train(kind: str, steps: int = 60, **settings) -> list[float]:
    """The loss at every step."""
    torch.manual_seed(0)
    model, losses = ViT(kind, **settings), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        labels, pictures = torch.randint(4, (32,)), torch.randn(32, 1, 16, 16)
        for picture, label in zip(pictures, labels.tolist(), strict=True):
            picture[0, 8 * (label // 2) :, 8 * (label % 2) :][:8, :8] += 2
        loss = F.cross_entropy(model(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    kind, *rest = sys.argv[1:] or ["mhc"]
    settings: dict[str, Any] = {
        name: int(value) if value.isdigit() else value for name, _, value in (word.partition("=") for word in rest)
    }
    losses = train(kind, **settings)
    print(f"{kind}: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
