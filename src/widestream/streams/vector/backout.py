"""Backout: in front of the head, some of what the first layers have written is taken out again.

    x <- x + f(x)              behind every block
    x <- x - lambda x_m        in front of the head; x_m is the stream as it was behind the first m layers

Changes: what early layers write is context for later ones and part of the prediction at once; with one number the model
can keep it as context only.
Costs: one scalar, and one vector kept from layer m on.
Does not start plain: lambda = 0.2 (nanochat; the speedrun's is 0.5). With `start: 0` it does.
Evidence: 90 steps fewer of 2,380 to the same loss, other settings changed with it (KellerJordan/modded-nanogpt, pull
request 140); since absorbed there by dense connections of the last layers, which begin as it (259; `mudd`). Lambdas
learned for all 11 layers at once: .54, .46, .44, .34, .27, .30, .20, .38, -.07, -.22, -.29.
Where the sources part: the speedrun keeps the stream behind 9 of its 12 layers (later 8 of 11), nanochat behind
floor(L / 2) + 1 of L, the default here, but at most L - 1: behind all layers lambda would be a scale that the norm
takes out.

Letters: B batch, T tokens, D width, L layers.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from widestream.blocks.roles import Role, Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.depth_sums import layer_ends
from widestream.streams.vector.plain import VectorBase


@dataclass(frozen=True, kw_only=True, slots=True)
class BackoutConfig(StreamConfig):
    """What is taken out, and how much of it at first."""

    kind: Literal["backout"] = "backout"
    """This stream."""
    layers: int | None = None
    """[m] x_m is the stream behind so many layers, 0: the embedding; default: floor(L / 2) + 1, at most L - 1."""
    start: float = 0.2
    """Lambda at first."""

    def __post_init__(self):
        if self.layers is not None and self.layers < 0:
            raise UserError(f"model.stream.layers is {self.layers}; it must be at least 0 (the embedding).")


class State(NamedTuple):
    """The stream, and what it was."""

    x: Tensor
    """[B, T, D]."""
    x_m: Tensor | None
    """The stream behind m layers [B, T, D]; None before."""


class BackoutStream(VectorBase[BackoutConfig]):
    """x [B, T, D], and x_m beside it; norms as in the plain stream."""

    Config = BackoutConfig
    depth_settings = ("layers",)
    limits = ('nanochat\'s log of 2026-01: "no improvement" there (karpathy/nanochat, dev/LOG.md); it has it since.',)
    examples = ({}, {"layers": 1, "start": 0.0})

    lambda_: Tensor
    """[1]."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        ends = {number: site for site, number in layer_ends(self.blocks(config)).items()}
        self.kept_site = ends[kept_layers(self.settings, config)]
        self.declare("lambda_", (1,), Role(std=0.0, decay="none", part="stream"))

    def initial_values(self) -> dict[str, Tensor]:
        """Lambda as set."""
        return {"lambda_": torch.full((1,), self.settings.start)}

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D, and an earlier one."""
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=cls.settings_of(config).start == 0,
            history=f"the stream behind {kept_layers(cls.settings_of(config), config)} layers",
            history_size=config.embed_dim,
            papers=(
                "https://github.com/KellerJordan/modded-nanogpt/pull/140",
                "https://github.com/karpathy/nanochat",
            ),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """The plain stream's gains, and lambda."""
        return super().parameter_formula(config) + 1

    def cost(self) -> StreamCost:
        """No product; x_m is put aside once and read once, and is saved as its reader's norm has it."""
        plain = super().cost()
        return StreamCost(flops=0, bytes_moved=plain.bytes_moved + 2 * 4 * self.width, bytes_saved=plain.bytes_saved)

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """Add; put x_m aside; take it out in front of the head."""
        x, x_m = (written, None) if state is None else (state.x + written, state.x_m)
        if site == self.kept_site:
            x_m = x
        if self.readers[site] == "head":
            assert x_m is not None
            x = x - self.lambda_ * x_m
        return State(x, x_m)

    def read(self, site: int, state: State) -> dict[str, Tensor]:
        """Normalise."""
        return super().read(site, state.x)


def kept_layers(settings: BackoutConfig, config: ModelConfig) -> int:
    """[m] Behind how many layers the stream is kept.

    Raises:
        UserError: the model has no layer behind these.
    """
    L = config.num_layers
    layers = min(L // 2 + 1, L - 1) if settings.layers is None else settings.layers
    if layers >= L:
        raise UserError(f"model.stream.layers is {layers}; of {L} layers it may be at most {L - 1}.")
    return layers
