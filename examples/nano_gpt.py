"""A GPT in a page, with its own attention and MLP, and a residual stream of any kind between them.

    python examples/nano_gpt.py mhc lanes=4
    python examples/nano_gpt.py matrix_dense key_dim=32
    python examples/nano_gpt.py mudd

It learns this file by heart, character by character.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widestream import residual

Read = Tensor | tuple[Tensor, Tensor, Tensor]


class Attention(nn.Module):
    """Causal attention. Some kinds of stream have a vector of their own for each of q, k and v."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: Read) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        q, k, v = x if isinstance(x, tuple) else (x, x, x)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q(q), self.k(k), self.v(v)))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two matrices around a GELU."""

    def __init__(self, dim: int):
        super().__init__()
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.down(F.gelu(self.up(x)))


class GPT(nn.Module):
    """Embedding, branches between the stream's exchanges, head."""

    def __init__(
        self, vocab: int, kind: str, dim: int = 64, heads: int = 4, layers: int = 4, context: int = 64, **settings
    ):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(context, dim)
        self.branches = nn.ModuleList(b for _ in range(layers) for b in (Attention(dim, heads), MLP(dim)))
        self.stream = residual(kind, dim, sites=["attention", "mlp"] * layers, heads=heads, **settings)
        self.head = nn.Linear(dim, vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, T] -> logits [B, T, V]."""
        state, x = self.stream.start(self.tokens(ids) + self.positions.weight[: ids.shape[1]])
        for site, branch in enumerate(self.branches, 1):
            state, x = self.stream.exchange(site, state, branch(x))
        return self.head(x)

    def optimizer(self, lr: float = 3e-3) -> torch.optim.Optimizer:
        """AdamW; the stream says which of its parameters are decayed."""
        own = [parameter for name, parameter in self.named_parameters() if not name.startswith("stream.")]
        return torch.optim.AdamW([*self.stream.parameter_groups(lr, weight_decay=0.1), {"params": own}], lr=lr)


def train(kind: str, steps: int = 100, **settings) -> list[float]:
    """The loss at every step."""
    torch.manual_seed(0)
    text = Path(__file__).read_text(encoding="utf-8")
    letters = sorted(set(text))
    data = torch.tensor([letters.index(letter) for letter in text])
    model, losses = GPT(len(letters), kind, **settings), []
    optimizer = model.optimizer()
    for _ in range(steps):
        starts = torch.randint(len(data) - 65, (8,))
        batch = torch.stack([data[start : start + 65] for start in starts])
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def settings_of(arguments: list[str]) -> dict[str, Any]:
    """Words like lanes=4 as settings."""
    settings: dict[str, Any] = {}
    for name, _, value in (argument.partition("=") for argument in arguments):
        settings[name] = int(value) if value.isdigit() else value
    return settings


if __name__ == "__main__":
    kind, *rest = sys.argv[1:] or ["mhc"]
    losses = train(kind, **settings_of(rest))
    print(f"{kind}: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
