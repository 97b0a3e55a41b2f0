"""The scalars of nanochat: at the entry of every layer the stream is rescaled and the embedding mixed in again.

    x <- lambda_l x + mu_l x_0      in front of layer l; x_0 is the embedding
    x <- x + f(x)                   behind every block

Changes: layers can forget (lambda < 1) and have the embedding at hand without carrying it through the depth.
Costs: 2 L scalars, and one vector more to keep and to read.
Starts plain: lambda = 1, mu = 0.
Evidence: it is in a widely used code (karpathy/nanochat, gpt.py), tuned there by hand; no paper isolates it.
There x_0 is the normalised embedding, mu has started at other values in some versions, and an exit from the middle of
the depth and value embeddings go with it; here x_0 is what was written first, and the scalars stand alone.

Letters: B batch, T tokens, D width, l layers.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from widestream.blocks.roles import Role, Roles
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.depth_sums import layer_ends
from widestream.streams.vector.plain import VectorBase


@dataclass(frozen=True, kw_only=True, slots=True)
class X0ScalarsConfig(StreamConfig):
    """The scalars have no settings beyond their kind."""

    kind: Literal["x0_scalars"] = "x0_scalars"
    """This stream."""


class State(NamedTuple):
    """The stream and its beginning."""

    x: Tensor
    """[B, T, D]."""
    x0: Tensor
    """The embedding [B, T, D]."""


class X0ScalarsStream(VectorBase[X0ScalarsConfig]):
    """x [B, T, D] and x_0 beside it; norms as in the plain stream."""

    Config = X0ScalarsConfig

    lambdas: Tensor
    """Weights of the stream, one per layer."""
    mus: Tensor
    """Weights of the embedding, one per layer."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        self.layer_ends = layer_ends(self.blocks(config))
        self.declare("lambdas", (config.num_layers,), Role(std=None, decay="none", part="stream"))
        self.declare("mus", (config.num_layers,), Role(std=0.0, decay="key", part="stream"))

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D, and the embedding."""
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=True,
            history="the embedding",
            history_size=config.embed_dim,
            papers=("https://github.com/karpathy/nanochat",),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """The plain stream's gains, and 2 L scalars."""
        return super().parameter_formula(config) + 2 * config.num_layers

    def cost(self) -> StreamCost:
        """No product; every layer reads x_0 (the first one writes it), and keeps what it rescales."""
        plain, mixed = super().cost(), 4 * self.width * len(self.mus)
        return StreamCost(flops=0, bytes_moved=plain.bytes_moved + mixed, bytes_saved=plain.bytes_saved + mixed)

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """Add; then, in front of a layer, rescale and mix."""
        x, x0 = (written, written) if state is None else (state.x + written, state.x0)
        layer = self.layer_ends.get(site, len(self.mus))  # the layer that reads next, from 0
        if layer < len(self.mus):
            x = self.lambdas[layer] * x + self.mus[layer] * x0
        return State(x, x0)

    def read(self, site: int, state: State) -> dict[str, Tensor]:
        """Normalise."""
        return super().read(site, state.x)
