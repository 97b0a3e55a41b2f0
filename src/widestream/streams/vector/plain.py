"""The plain transformer's stream: a vector to which every block adds (RMT paper, section 2.1).

    x_{i+1} = x_i + block(norm(x_i))

It changes nothing and is what every other stream is compared with.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from widestream.blocks.norm import read_norms, read_norms_size
from widestream.blocks.roles import Roles
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import Settings, Stream, StreamCost, StreamSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorConfig(StreamConfig):
    """The plain stream has no settings beyond its kind."""

    kind: Literal["vector"] = "vector"
    """This stream."""


class VectorBase(Stream[Settings]):
    """What the relatives of the plain stream build on: one pre-norm in front of every block and of the head."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        self.width = config.embed_dim
        shape = (self.width,)
        self.norms = read_norms(config, roles, self.readers, shape)

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """(2 L + 1) D gains; L D more with ShortSWA."""
        return read_norms_size(config, config.embed_dim)

    def cost(self) -> StreamCost:
        """No product at all; a read and a write of D float32 per exchange; the input of every norm is saved."""
        state = 4 * self.width
        return StreamCost(flops=0, bytes_moved=2 * state * len(self.readers), bytes_saved=state * len(self.readers))

    def write(self, site: int, state: Any, written: Tensor) -> Any:
        """Add. (`Any`: relatives of this stream keep more than a tensor.)"""
        return written if state is None else state + written

    def read(self, site: int, state: Any) -> dict[str, Tensor]:
        """Normalise."""
        return {"x": self.norms[site](state)}


class VectorStream(VectorBase[VectorConfig]):
    """x [B, T, D]."""

    Config = VectorConfig

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D."""
        return StreamSpec(state_shape=(config.embed_dim,), starts_plain=True, papers=("1706.03762",))
