"""SiameseNorm: a post-norm and a pre-norm stream through the same blocks (Li et al., arXiv 2602.08064, ICML 2026).

    x <- N(x)                                                   in front of every block
    z  = f(N(x + N(y)))
    x <- x + z / sqrt(2 (l + 1)),   y <- y + z                   l = 0, 1, ... the block's layer
    head: N(N(x) + N(y))

Every N is a norm of its own. x and y both begin as the embedding.

Changes: x is normed on its way past every block, as in a post-norm model, so that no early block's say outgrows a late
one's; y carries gradients unchanged from the head to the embedding, as in a pre-norm model.
Costs: two more norms per reader, 2 (2 L + 1) D gains; a state twice as wide; no matrix product.
Does not start plain: the plain model's y is only half of what a block reads, and x weighs late blocks less.
Evidence (the authors'): better than pre-norm at 0.4B and 1.3B and in a mixture of experts of 15B, and with larger rates
than pre-norm stands; DeiT-S 79.8 -> 81.3, DiT-B/2 FID 42.43 -> 40.31. We know of no replication.
Paper and code: this is the form of the published vision models (Qwen-Applications/SiameseNorm, Block of
deit-model-siamesenorm.py). Its language models have a second one, "hybrid", of which some norms of x are left out by a
configuration; that is not here.

Letters: B batch, T tokens, D width, l layers.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn

from widestream.blocks.norm import Norm, norm_size
from widestream.blocks.roles import Roles
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.vector.plain import VectorBase


@dataclass(frozen=True, kw_only=True, slots=True)
class SiameseNormConfig(StreamConfig):
    """SiameseNorm has no settings beyond its kind."""

    kind: Literal["siamese_norm"] = "siamese_norm"
    """This stream."""


class State(NamedTuple):
    """Both streams, as the next reader finds them."""

    x: Tensor
    """The post-norm stream, normed [B, T, D]."""
    y: Tensor
    """The pre-norm stream [B, T, D]."""


class SiameseNormStream(VectorBase[SiameseNormConfig]):
    """x and y [B, T, D]; `norms` are those in front of readers, as in the plain stream."""

    Config = SiameseNormConfig

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        # The streams' own norms, which stay where blocks have their norms behind them.
        self.x_norms, self.y_norms = (
            nn.ModuleList(Norm(config, roles, (self.width,)) for _ in self.readers) for _ in range(2)
        )
        self.scales = [1 / math.sqrt(2 * (block.layer + 1)) for block in self.blocks(config)]
        """What of a block's output x gets."""

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """Two vectors of width D."""
        return StreamSpec(
            state_shape=(2, config.embed_dim),
            starts_plain=False,
            undo="replay",
            papers=("2602.08064", "https://github.com/Qwen-Applications/SiameseNorm"),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """The plain stream's gains, and 2 (2 L + 1) D more."""
        return super().parameter_formula(config) + 2 * (len(cls.blocks(config)) + 1) * norm_size(
            config, config.embed_dim
        )

    def cost(self) -> StreamCost:
        """No product. Saved: the inputs of three norms per reader; x and y begin as one."""
        vector, sites = 4 * self.width, len(self.readers)
        return StreamCost(
            flops=0,
            bytes_moved=2 * 2 * vector * sites,
            bytes_saved=vector * (3 * sites - 1),
            bytes_saved_writes=vector * (sites + 2 * len(self.anchored)),
        )

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """Add to both, and norm x."""
        if state is None:
            x = y = written
        else:
            written = written.to(state.y.dtype)
            x, y = state.x + self.scales[site - 1] * written, state.y + written
        return State(self.x_norms[site](x), y)

    def read(self, site: int, state: State) -> dict[str, Tensor]:
        """N(x + N(y))."""
        return super().read(site, state.x + self.y_norms[site](state.y))
