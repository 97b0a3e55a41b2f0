"""ReZero's stream: every block behind a gate that starts at zero (Bachlechner et al., arXiv 2003.04887, section 3).

    x_{i+1} = x_i + alpha_i f(x_i),   alpha_i = 0 at the start

Changes: at the start no block contributes, and the model maps embeddings straight to the head.
Costs: one scalar a block.
Does not start plain: the plain transformer's blocks contribute from the first step; here their weights have no gradient
until the alphas have moved, after one step.
Evidence: the paper reports 56 % faster convergence of a 12-layer transformer on enwiki8, and trains 120 layers; at the
scale of language models of today there is none.
The paper drops all norms (`pre_norm: false`); with them (the default) the only difference to the plain stream is alpha.

Letters: B batch, T tokens, D width, i blocks.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from widestream.blocks.roles import Role, Roles
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.vector.plain import VectorBase


@dataclass(frozen=True, kw_only=True, slots=True)
class ReZeroConfig(StreamConfig):
    """With or without norms."""

    kind: Literal["rezero"] = "rezero"
    """This stream."""
    pre_norm: bool = True
    """Norms in front of blocks and head, as in the plain stream; false: none at all (the paper)."""


class ReZeroStream(VectorBase[ReZeroConfig]):
    """x [B, T, D]; one gate per block."""

    Config = ReZeroConfig
    examples = ({}, {"pre_norm": False})

    alpha: Tensor
    """Gates, one per block."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        if not self.settings.pre_norm:
            self.norms = nn.ModuleList(nn.Identity() for _ in self.readers)
        self.declare("alpha", (len(self.readers) - 1,), Role(std=0.0, decay="key", part="stream"))

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D."""
        return StreamSpec(state_shape=(config.embed_dim,), starts_plain=False, papers=("2003.04887",))

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """One gate per block, 2 L, and the plain stream's gains unless there are no norms."""
        gates = len(cls.blocks(config))
        return gates + super().parameter_formula(config) if cls.settings_of(config).pre_norm else gates

    def cost(self) -> StreamCost:
        """No product; every gate keeps its block's output, and norms their input."""
        plain = super().cost()
        saved = 4 * self.width * len(self.alpha) + (plain.bytes_saved if self.settings.pre_norm else 0)
        return replace(plain, bytes_saved=saved)

    def write(self, site: int, state: Tensor | None, written: Tensor) -> Tensor:
        """Add behind the gate."""
        # A slice, not a scalar: a scalar would not widen bfloat16 block outputs to its own float32.
        return written if state is None else state + self.alpha[site - 1 : site] * written
