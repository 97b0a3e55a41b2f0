"""Orthogonal updates: what a block says along the stream is dropped (Oh et al., arXiv 2505.11881, NeurIPS 2025).

    x_{i+1} = x_i + f - (x_i . f) / (x_i . x_i + eps) x_i          f = f(norm(x_i)), eps = 1e-6

Changes: a block can turn the stream, and no longer lengthen or shorten it along itself. |x_{i+1}|^2 = |x_i|^2 + |f'|^2,
f' being what is left of f, so that the stream's length never falls.
Costs: no parameter and no matrix product; two sums over the width per block.
Does not start plain: f is hardly ever orthogonal to x.
Evidence (the authors'): ImageNet-1k, ViT-B 73.27 -> 77.05, ViT-S 70.76 -> 72.53; ResNetV2-34 on CIFAR-100 78.92 ->
78.97. The first version of the paper says + 4.3 for ViT-B, the last one + 3.78.
Paper and code (BootsofLagrangian/ortho-residual) agree; this is its `feature` form, over the numbers of one vector. Its
`global` form takes all positions of an image together, and would let a token see later ones here.

Letters: B batch, T tokens, D width, i blocks.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.vector.plain import VectorBase

EPS = 1e-6
"""Added to |x|^2 (the authors' code)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OrthogonalConfig(StreamConfig):
    """Orthogonal updates have no settings beyond their kind."""

    kind: Literal["orthogonal"] = "orthogonal"
    """This stream."""


class OrthogonalStream(VectorBase[OrthogonalConfig]):
    """x [B, T, D]; norms as in the plain stream."""

    Config = OrthogonalConfig
    limits = ("All published evidence is of image classifiers, none of language models (2505.11881).",)

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D."""
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=False,
            undo="replay",
            papers=("2505.11881", "https://github.com/BootsofLagrangian/ortho-residual"),
        )

    def cost(self) -> StreamCost:
        """No matrix product; a block's output is kept beside the norm's input, and two sums."""
        plain, vector, blocks = super().cost(), 4 * self.width, len(self.readers) - 1
        return replace(
            plain,
            bytes_saved=plain.bytes_saved + (vector + 8) * blocks,
            bytes_saved_writes=vector * (len(self.readers) + len(self.anchored)),
        )

    def write(self, site: int, state: Tensor | None, written: Tensor) -> Tensor:
        """Add what is orthogonal to the stream."""
        if state is None:
            return written
        written = written.to(state.dtype)
        along = (state * written).sum(-1, keepdim=True) / (state.square().sum(-1, keepdim=True) + EPS)
        return state + written - along * state
