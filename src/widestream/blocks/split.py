"""Windows and blocks that several processes share: what a model asks of whoever sends something from one to the other.

A block that looks at one token at a time knows nothing of it. Attention, convolutions over tokens and the balance of
experts look at others, and ask a `TokenSplit`, which `Context.split` holds. There is none in one process.
What a `BlockSplit` divides is smaller than the model's settings say, and knows nothing of it either.

Letters: B batch, N processes, T tokens of a whole window, t = T / N of them here, H heads, H_kv heads of keys and
values, K head width.
"""

from typing import Protocol

from torch import Tensor, nn


class TokenSplit(Protocol):
    """The processes that share a window, of which process i has the tokens from i t on; all call the same in turn."""

    @property
    def size(self) -> int:
        """N."""
        ...

    def own(self, x: Tensor, dim: int) -> Tensor:
        """The part of whole windows that this process has: T long along `dim` -> t long."""
        ...

    def own_heads(self, num_heads: int) -> slice:
        """The heads whose attention this process computes, H / N of them."""
        ...

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All heads of own tokens, q [B, t, H, K], k, v [B, t, H_kv, K], to own heads of all tokens [B, T, H / N, K].

        Keys and values may come as fewer heads, each for as many of the queries'.
        """
        ...

    def to_tokens(self, heads: Tensor) -> Tensor:
        """Back: own heads of all tokens [B, T, H / N, K] to all heads of own tokens [B, t, H, K]."""
        ...

    def before(self, x: Tensor, count: int) -> Tensor:
        """The `count` tokens before the own ones: x [B, t, ...] -> [B, count, ...], zeros before the window's first."""
        ...

    def total(self, x: Tensor) -> Tensor:
        """The sum of what the processes hand in, in any shape."""
        ...


class BlockSplit(Protocol):
    """The processes that share the heads and neurons of every block, and read the same windows."""

    def own_heads(self, num_heads: int) -> slice:
        """The heads that this process computes, H / N of them."""
        ...

    def divide(self, blocks: nn.ModuleList) -> None:
        """Leave those heads and neurons in each block that this process computes, and have the outputs added up."""
        ...


def share_of(bias: Tensor | None, share: float) -> Tensor | None:
    """What one process adds of a bias of which those that share a block add parts, so that all compute alike."""
    return bias if bias is None or share == 1 else bias * share
