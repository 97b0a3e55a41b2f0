"""Streams with fixed numbers: the vector and what is added to it are each multiplied by a number that is not learned.

    x_{i+1} = a_i x_i + b_i f(norm(x_i))            carries: stream
    x_{i+1} = a_i norm(x_i) + b_i f(norm(x_i))      carries: normed

Schedules, for S = 2 L blocks i = 0, ..., S - 1:
    constant    a_i = alpha, b_i = beta; of MLPs alpha_mlp and beta_mlp if they are given
    layers      the same with b_i = beta / sqrt(L) (MiniCPM's depth scaling, arXiv 2404.06395)
    mean        a_i = sqrt((i + 1) / (i + 2)), b_i = sqrt(1 / (i + 2)): x is the sum of all writes over the root of
                their number, and keeps its size if they are of one size and independent

Released models: Granite (`granite`: beta, the "residual multiplier", 0.22 in Granite 3), MiniCPM3 (`minicpm3`: layers,
beta 1.4), MiniMax-01 (`minimax`: the normed vector goes on, alpha = (2 L)^(1/4) = 3.56 for L = 80, DeepNorm's, arXiv
2203.00555; its linear and full attention could have different numbers, and have the same) and Beam (`beam`: mean, with
sandwich norms). Tests hold all four to transformers' models.

Changes: how much of the stream a block's output is. Under pre-norm readers see the stream's direction alone, so mean is
the plain stream but for the norm's eps; behind norms of their own, or with b alone below 1, blocks start out small
beside what is there.
Costs: nothing; no parameters.
Does not start plain: even mean, at the small initial scale of published code, where eps counts (mean squares of 4e-4
become 8e-6 behind 48 blocks, beside an eps of 1e-6).
Evidence: none that isolates it was found; DeepNorm trained 1000 layers.

Letters: B batch, T tokens, D width, L layers.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from widestream.blocks.roles import Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamSpec
from widestream.streams.vector.plain import VectorBase


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaledConfig(StreamConfig):
    """The numbers."""

    kind: Literal["scaled"] = "scaled"
    """This stream."""
    schedule: Literal["constant", "layers", "mean"] = "mean"
    """How the numbers depend on depth."""
    alpha: float = 1.0
    """constant, layers: of the stream."""
    beta: float = 1.0
    """constant, layers: of what a block puts out."""
    alpha_mlp: float | None = None
    """The same for MLPs; default: alpha."""
    beta_mlp: float | None = None
    """The same for MLPs; default: beta."""
    carries: Literal["stream", "normed"] = "stream"
    """What is added to: the stream, or its norm, which the block has read (post-norm)."""

    def __post_init__(self):
        for name in ("alpha", "beta", "alpha_mlp", "beta_mlp"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"model.stream.{name} is {value}; it must be above 0.")
        numbers = {self.alpha, self.beta} | {x for x in (self.alpha_mlp, self.beta_mlp) if x is not None}
        if self.schedule == "mean" and numbers != {1.0}:
            raise UserError("model.stream.schedule: mean has numbers of its own; leave out alpha and beta.")
        if self.schedule == "constant" and self.carries == "stream" and numbers == {1.0}:
            raise UserError("A scaled stream whose numbers are all 1 is the plain one; use kind: vector.")


class ScaledStream(VectorBase[ScaledConfig]):
    """x [B, T, D], and fixed numbers on both sides of the sum; norms as in the plain stream."""

    Config = ScaledConfig
    models: ClassVar = {
        "granite": {"schedule": "constant", "beta": 0.22},
        "minicpm3": {"schedule": "layers", "beta": 1.4},
        "minimax": {"schedule": "constant", "alpha": 3.5565588200778455, "carries": "normed"},
        "beam": {"schedule": "mean"},
    }
    examples = ({}, {"schedule": "layers", "alpha": 1.5, "beta": 0.5, "beta_mlp": 0.7, "carries": "normed"})

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        if self.settings.carries == "normed" and config.norm_place == "after":
            raise UserError(
                "model.stream.carries: normed is about norms in front of blocks; with model.norm_place: after there "
                "are none."
            )
        self.numbers = [self._numbers(site, config) for site in range(1, len(self.readers))]
        """a and b of every block."""

    def _numbers(self, site: int, config: ModelConfig) -> tuple[float, float]:
        settings = self.settings
        if settings.schedule == "mean":
            return math.sqrt(site / (site + 1)), math.sqrt(1 / (site + 1))
        alpha, beta = settings.alpha, settings.beta
        if self.readers[site - 1] == "mlp":
            alpha = alpha if settings.alpha_mlp is None else settings.alpha_mlp
            beta = beta if settings.beta_mlp is None else settings.beta_mlp
        return alpha, beta / math.sqrt(config.num_layers) if settings.schedule == "layers" else beta

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D."""
        return StreamSpec(state_shape=(config.embed_dim,), starts_plain=False, papers=("2404.06395", "2203.00555"))

    def write(self, site: int, state: Tensor | None, written: Tensor) -> Tensor:
        """The weighted sum; where it goes on normed, its norm."""
        x = written
        if state is not None:
            a, b = self.numbers[site - 1]
            x = a * state + b * written.to(state.dtype)
        return self.norms[site](x).to(x.dtype) if self.settings.carries == "normed" else x

    def read(self, site: int, state: Tensor) -> dict[str, Tensor]:
        """Normalise, unless that is done."""
        return {"x": state} if self.settings.carries == "normed" else super().read(site, state)
