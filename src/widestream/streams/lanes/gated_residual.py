"""Gated residual: normed lanes, read through a gate of every channel and written with a number each (Qwen4's preview).

    z_i = norm(x_i) g_i                           lane i of n, i = 1, ..., n, with a gain g_i in R^D of its own
    G   = sigmoid(W_up silu(W_down vec(z) / n))   [n, D], W_down: n D -> r, W_up: r -> n D
    u   = mean_i G_i * z_i                        what the block gets: no further norm stands in front of it
    s   = 2 sigmoid(W_write vec(z) / n)           [n]
    x_i' = x_i + s_i block(u)

The embedding is copied to every lane. The head gets u of parameters of its own, without a further norm and without s.

Released model: `qwen4_exp`, n = 4 and r = 320, held to transformers' model by tests. It adds features of hashed n-grams
to all lanes at chosen layers; they need the tokens themselves, tables of millions of rows and a convolution, and are
left out here.

Changes: as in hyper-connections blocks read mixtures of lanes; but lanes are not mixed with each other, and every
channel of every lane has a gate of its own, made out of all lanes.
Costs per block: n D (2 r + n + 1) parameters, of which the plain stream has D; 4 n D r + 2 n^2 D FLOPs. At GPT-2 small
with n = 4 and r = 320: 1 981 440 each, 50M in all, 40 % of the plain model.
Does not start plain: at the start all lanes are equal and maps are random (the released code's, too), so that gates are
near 1/2 and s near 1, each different. That tells lanes apart.
Evidence: none that isolates it was found.

Letters: B batch, T tokens, n lanes, D width, r rank.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widestream.blocks.norm import Norm, norm_size
from widestream.blocks.roles import Axis, Roles
from widestream.errors import UserError
from widestream.kernels.autocasting import no_autocast
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import Stream, StreamCost, StreamSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedResidualConfig(StreamConfig):
    """Sizes of the gated residual."""

    kind: Literal["gated_residual"] = "gated_residual"
    """This stream."""
    lanes: int = 4
    """[n] Lanes, each as wide as the plain stream."""
    rank: int = 320
    """[r] Numbers that gates are made from."""

    def __post_init__(self):
        if self.lanes < 2:
            raise UserError(f"model.stream.lanes is {self.lanes}; it must be at least 2.")
        if self.rank < 1:
            raise UserError(f"model.stream.rank is {self.rank}; it must be at least 1.")


class State(NamedTuple):
    """The state between a write and the next one."""

    given: Tensor
    """What the reader gets [B, T, D]."""
    lanes: Tensor | None = None
    """x [B, T, n, D]; None in front of the head."""
    weights: Tensor | None = None
    """s [B, T, n]; None in front of the head."""


class GatedResidualStream(Stream[GatedResidualConfig]):
    """x [B, T, n, D]; norms of all lanes and gates, a set for every reader."""

    Config = GatedResidualConfig
    models: ClassVar = {"qwen4_exp": {}}
    examples = ({}, {"lanes": 3, "rank": 8})

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        settings = self.settings
        self.lanes, self.width, self.num_blocks = settings.lanes, config.embed_dim, len(self.readers) - 1
        self.norms = nn.ModuleList(Norm(config, roles, (self.width,), (self.lanes, self.width)) for _ in self.readers)
        self.fused = config.norm == "rmsnorm" and config.norm_cast == "after_gain"
        lanes, ranks, state = Axis(settings.lanes), Axis(settings.rank), settings.lanes * config.embed_dim
        down = roles.hidden((lanes, roles.width), (ranks,), "stream", decay="key")
        up = roles.hidden((ranks,), (lanes, roles.width), "stream", decay="key")
        write = replace(roles.hidden((lanes, roles.width), (lanes,), "stream", decay="key"), muon=False)
        for site in range(len(self.readers)):
            self.declare(f"down_{site}", (settings.rank, state), down)
            self.declare(f"up_{site}", (state, settings.rank), up)
            if site < self.num_blocks:
                self.declare(f"write_{site}", (settings.lanes, state), write)

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """Lanes of width D, n of them."""
        lanes = cls.settings_of(config).lanes
        return StreamSpec(state_shape=(lanes, config.embed_dim), starts_plain=False, undo="replay")

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """Of gates and norms n D (2 r + 1) per reader, and n^2 D per block."""
        settings, D, blocks = cls.settings_of(config), config.embed_dim, config.num_blocks
        state = settings.lanes * D
        return (blocks + 1) * (2 * state * settings.rank + norm_size(config, state)) + blocks * settings.lanes * state

    def cost(self) -> StreamCost:
        """Three products per block; kept are x, z, G, s, the written vector, and the rank's numbers twice.

        A norm that is no one operation with its gain keeps what is between. All lanes of the first x are one vector.
        """
        n, r, width, state = self.lanes, self.settings.rank, self.width, self.lanes * self.width
        readers = len(self.readers)
        gates = (3 if self.fused else 4) * state + 2 * r
        return StreamCost(
            flops=readers * 4 * state * r + self.num_blocks * 2 * n * state,
            bytes_moved=4 * 2 * state * readers,
            bytes_saved=4 * (readers * gates - (n - 1) * width + self.num_blocks * (width + n)),
            bytes_saved_writes=4 * (self.num_blocks * width + width + (width + state + n) * len(self.anchored)),
        )

    def spread(self, embedding: Tensor) -> Tensor:
        """A copy of the embedding [B, T, D] in every lane [B, T, n, D]."""
        return embedding.unsqueeze(-2).expand(*embedding.shape[:-1], self.lanes, self.width)

    def deposit(self, state: State, written: Tensor) -> Tensor:
        """Lanes x' [B, T, n, D] from the state in front of the block and what it has put out [B, T, D]."""
        assert state.lanes is not None
        assert state.weights is not None
        y = written.to(state.lanes.dtype)
        return torch.addcmul(state.lanes, state.weights.unsqueeze(-1), y.unsqueeze(-2))

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """Into the lanes, and on to what the next reader gets of them."""
        with no_autocast(written.device):
            x = self.spread(written) if state is None else self.deposit(state, written)
            z = self.norms[site](x)
            flat = z.flatten(-2)
            low = F.silu(F.linear(flat, self.get_parameter(f"down_{site}")) / self.lanes)
            gates = F.linear(low, self.get_parameter(f"up_{site}")).sigmoid().unflatten(-1, (self.lanes, self.width))
            given = (gates * z).mean(-2)
            if site == self.num_blocks:
                return State(given)
            weights = 2 * (F.linear(flat, self.get_parameter(f"write_{site}")) / self.lanes).sigmoid()
            return State(given, x, weights)

    def read(self, site: int, state: State) -> dict[str, Tensor]:
        """What the gates have let through."""
        return {"x": state.given}
