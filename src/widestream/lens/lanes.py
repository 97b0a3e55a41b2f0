"""How lanes are mixed over depth: the product of a lane stream's mixing matrices, from any reader to any later one.

    H_{i+1} = A_i H_i + B_i y_i        A_i [n, n] mixes the lanes H_i [n, W] that reader i finds on their way past it
    H_j     = A_{j-1} ... A_i H_i + ...

With static weights the product is a property of the model, with dynamic ones of each token in a pass. AltUp's lanes are
those behind its prediction; those of mHC with H_res = I, of gated residual and of parallel lanes go past unmixed.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from widestream.lens.look import Seen
from widestream.streams.lanes.altup import AltUpStream
from widestream.streams.lanes.base import LaneBase


@dataclass(frozen=True)
class LaneMixing:
    """Mixing matrices of a pass."""

    readers: list[str]
    """In front of whom lanes are counted: every block, and the head."""
    steps: Tensor
    """[readers - 1, B, T, n, n]: how lanes [to, from] are mixed past each block."""
    dynamic: bool
    """Whether they depend on the token."""

    def between(self, start: int, end: int) -> Tensor:
        """The product from one reader to a later one, token by token [B, T, n (to), n (from)].

        Args:
            start: place of the earlier reader in `readers`.
            end: place of the later one.
        """
        product = torch.eye(self.steps.shape[-1], dtype=self.steps.dtype, device=self.steps.device)
        product = product.expand_as(self.steps[0])
        for step in self.steps[start:end]:
            product = step @ product
        return product

    def composite(self) -> Tensor:
        """All products, means over tokens [readers (to), readers (from), n, n]; nan from later to earlier."""
        number, n = len(self.readers), self.steps.shape[-1]
        found = self.steps.new_full((number, number, n, n), torch.nan)
        for start in range(number):
            product = self.between(start, start)
            found[start, start] = product.mean((0, 1))
            for end in range(start + 1, number):
                product = self.steps[end - 1] @ product
                found[end, start] = product.mean((0, 1))
        return found

    def gains(self) -> tuple[float, float]:
        """Of the whole depth, forward and backward: the largest sum of absolute values in a row, in a column.

        Largest over tokens, too. A doubly stochastic product has 1 and 1; the mHC paper (2512.24880) reports some 3000
        for free matrices.
        """
        whole = self.between(0, len(self.readers) - 1).abs()
        return whole.sum(-1).max().item(), whole.sum(-2).max().item()


@torch.no_grad()
def lane_mixing(seen: Seen) -> LaneMixing | None:
    """The mixing matrices of a pass; None where the stream has no lanes that are mixed with each other."""
    steps = _steps(seen)
    if not steps:
        return None
    tokens = seen.tokens.shape
    readers = list(dict.fromkeys(reader.whole.name for reader in seen.readers()))
    dynamic = any(step.ndim > 2 for step in steps)
    return LaneMixing(readers, torch.stack([step.expand(*tokens, -1, -1) for step in steps]).double(), dynamic)


def _steps(seen: Seen) -> list[Tensor]:
    """How lanes are mixed past each block; none where they go past unmixed."""
    stream = seen.model.stream
    if isinstance(stream, AltUpStream):
        return [
            stream.lane_mixing(after.site, before.state, after.written[0]) for before, after in pairwise(seen.exchanges)
        ]
    if not isinstance(stream, LaneBase):
        return []
    steps = [mixing[..., stream.segments :, :] for mixing, _ in lane_coefficients(seen)]
    return steps if steps[0].shape[-2] else []


def lane_coefficients(seen: Seen) -> list[tuple[Tensor, Tensor]]:
    """What `LaneBase.coefficients` gives at every block in a pass; none for other streams."""
    stream, found = seen.model.stream, []
    if not isinstance(stream, LaneBase):
        return []
    token, *position = seen.exchanges[0].written
    found.append(stream.coefficients(0, stream.spread(sum(position, token))))
    for before, after in pairwise(seen.exchanges[:-1]):
        found.append(stream.coefficients(after.site, stream.deposit(before.state, after.written[0])))
    return found
