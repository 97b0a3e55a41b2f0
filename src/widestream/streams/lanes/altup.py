"""Alternating updates: n lanes, of which one goes through the blocks, and the others follow (AltUp, arXiv 2301.13310).

As Gemma 3n has it, with LAuReL (arXiv 2411.07501) beside every attention. A layer, of lanes x_0, ..., x_{n-1}:

    P_j = x_j + sum_i M_ji x_i        M = W_M r(x_0) [n, n]                prediction                              (1)
    z   = norm(P_0)                   what attention gets
    a   = (P_0 + attention(z) + z + norm_l(B A z)) / sqrt(2)               A: D -> rank, B: rank -> D              (2)
    c   = a + MLP(norm(a))
    x_j = P_j + (1 + (W_c r(c))_j) (c - P_0)                               correction of all lanes                 (3)
    r(v) = tanh(W_r norm_r(v) / D)    [n], the same W_r and norm_r in both

At the start x_0 is the embedding e, and x_j = U_j e, at the length of e; at the end the head gets the mean of x_0 and
all V_j x_j, these at the length of x_0 (mean squares that are divided by are at least 1e-5).

Released model: `gemma3n`, n = 4, rank 64, sandwich norms, held to transformers' model by tests. Its embeddings of every
layer, which are added to all lanes but the first, are left out: they need the tokens themselves. In training its code
clips W_M and W_c at 120; here they are not clipped.

Changes: the stream is n times as wide as the blocks, and all of it learns from each of them.
Costs: per layer n^3 + n^2 + n D + D numbers for (1) and (3), 2 D rank + D for (2); 2 (n - 1) D^2 at the ends. At
GPT-2 small with n = 4 and rank 64: 4.8M, of which 3.5M at the ends.
Does not start plain: W_M = W_c = 0, our choice, so that P = x and all lanes move alike; the other maps are random. With
`rank: 0` there is no LAuReL, and no sqrt(2): lane 0 then starts as the plain stream, but the head sees the others, too.
Evidence: the authors report T5 models up to 87 % faster than dense ones of equal accuracy (SuperGLUE, SQuAD).

Letters: B batch, T tokens, n lanes, D width.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widestream.blocks.norm import Norm, norm_size
from widestream.blocks.roles import Axis, Role, Roles
from widestream.errors import UserError
from widestream.kernels.autocasting import no_autocast
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import Block, StreamCost, StreamSpec
from widestream.streams.vector.plain import VectorBase

SMALLEST = 1e-5
"""Least mean square of a lane that is brought to the length of another."""


GROWS = (
    "With model.norm_place: after LAuReL adds the lane to itself, and the stream grows by the square root of 2 with "
    "every layer; use before, both or rank: 0."
)
"""Its z is what attention gets, and nothing norms that there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AltUpConfig(StreamConfig):
    """Sizes of alternating updates."""

    kind: Literal["altup"] = "altup"
    """This stream."""
    lanes: int = 4
    """[n] Lanes, each as wide as the blocks."""
    rank: int = 64
    """Of LAuReL's map; 0: no LAuReL."""

    def __post_init__(self):
        if self.lanes < 2:
            raise UserError(f"model.stream.lanes is {self.lanes}; it must be at least 2.")
        if self.rank < 0:
            raise UserError(f"model.stream.rank is {self.rank}; it must be at least 0.")


class State(NamedTuple):
    """The state between a write and the next one."""

    active: Tensor
    """What the reader gets, before its norm [B, T, D]: P_0, a, or the mean of lanes for the head."""
    lanes: Tensor | None = None
    """P [B, T, n, D]; None in front of the head."""


class AltUpStream(VectorBase[AltUpConfig]):
    """x [B, T, n, D]; norms in front of readers as in the plain stream."""

    Config = AltUpConfig
    models: ClassVar = {"gemma3n": {}}
    examples = ({}, {"lanes": 2, "rank": 0})
    limits = (GROWS,)

    spread_maps: Tensor
    """U_1, ..., U_{n-1}, one above the other [(n - 1) D, D]."""
    collect_maps: Tensor
    """V_1, ..., V_{n-1} [n - 1, D, D]."""
    router: Tensor
    """W_r of every layer [L, n, D]."""
    predict: Tensor
    """W_M of every layer [L, n^2, n]; row j n + i gives M_ji."""
    correct: Tensor
    """W_c of every layer [L, n, n]."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        n, D, L, rank = self.settings.lanes, self.width, config.num_layers, self.settings.rank
        self.num_lanes, self.rank = n, rank
        lanes, ranks, axes = Axis(n), Axis(rank or 1), (roles.width,)
        square = roles.hidden(axes, axes, "stream", decay="key", splits=(D,) * (n - 1))
        self.declare("spread_maps", ((n - 1) * D, D), square)
        self.declare("collect_maps", (n - 1, D, D), replace(square, splits=()))
        router = roles.hidden(axes, (lanes,), "stream", decay="key")
        # Its product is divided by D, which is muP's factor already.
        self.declare("router", (L, n, D), replace(router, lr_factor=1.0, muon=False))
        table = Role(0.0, "key", part="stream")
        self.declare("predict", (L, n * n, n), table)
        self.declare("correct", (L, n, n), table)
        self.router_norms = nn.ModuleList(Norm(config, roles, (D,)) for _ in range(L))
        if not rank:
            return
        self.declare("down", (L, rank, D), roles.hidden(axes, (ranks,), "stream", decay="key"))
        self.declare("up", (L, D, rank), roles.hidden((ranks,), axes, "stream", decay="key"))
        self.laurel_norms = nn.ModuleList(Norm(config, roles, (D,)) for _ in range(L))

    @classmethod
    def blocks(cls, config: ModelConfig) -> list[Block]:
        """Two blocks a layer.

        Raises:
            UserError: a layer has more, or fewer.
        """
        cls.require_pairs(config)
        if any(len(layer) != 2 for layer in config.layer_blocks):
            raise UserError("An altup stream has layers of two branches; give sites in pairs.")
        return super().blocks(config)

    @classmethod
    def warnings(cls, config: ModelConfig) -> list[str]:
        """LAuReL without a norm in front."""
        return [GROWS] if not config.norm_places[0] and cls.settings_of(config).rank else []

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """Lanes of width D, n of them."""
        return StreamSpec(
            state_shape=(cls.settings_of(config).lanes, config.embed_dim),
            starts_plain=False,
            undo="replay",
            papers=("2301.13310", "2411.07501"),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """The plain stream's gains, 2 (n - 1) D^2, and per layer n D + D + n^3 + n^2, and 2 D rank + D."""
        settings, D = cls.settings_of(config), config.embed_dim
        n, rank, gains = settings.lanes, settings.rank, norm_size(config, D)
        layer = n * D + n**3 + n * n + gains + (2 * D * rank + gains if rank else 0)
        return super().parameter_formula(config) + 2 * (n - 1) * D * D + config.num_layers * layer

    def cost(self) -> StreamCost:
        """Products of (1) to (3) and at the ends."""
        n, D, rank, vector = self.num_lanes, self.width, self.rank, 4 * self.width
        layers, sites = len(self.router), len(self.readers)
        layer = 2 * (2 * n * D + n**3 + n * n + n * n * D + 2 * D * rank)
        # Of a layer: x, P, c - P_0 and c, two norms' inputs (a is one) and outputs, z, LAuReL's map and norm.
        kept = layers * (2 * n * D + 5 * D + (2 * D + rank if rank else 0))
        ends = (5 * n - 2) * D  # e, the last x, the head's input; what is mapped, and times a length
        return StreamCost(
            flops=layers * layer + 4 * (n - 1) * D * D,
            bytes_moved=vector * 2 * n * (layers + 1) + vector * 4 * layers,
            bytes_saved=4 * (kept + ends),
            bytes_saved_writes=vector * sites + sum(self._anchor(site) for site in self.anchored),
        )

    def _anchor(self, site: int) -> int:
        """Bytes of the state behind the write at `site`: P, of which P_0 is a part, and behind attention a as well."""
        return 4 * self.width * (self.num_lanes + (site % 2))

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """Eq. 2 behind attention; eq. 3 behind an MLP, and eq. 1 of the next layer."""
        with no_autocast(written.device):
            if state is None:
                return self._enter(0, self.spread(written))
            written = written.to(state.active.dtype)
            if site % 2:
                return State(self._behind_attention(site, state.active, written), state.lanes)
            x = self.corrected(site, state, written)
            return self._enter(site, x) if site < len(self.readers) - 1 else State(self.collected(x))

    def read(self, site: int, state: State) -> dict[str, Tensor]:
        """Normalise the active lane."""
        return super().read(site, state.active)

    def spread(self, embedding: Tensor) -> Tensor:
        """Lanes at the start [B, T, n, D] from the embedding [B, T, D]."""
        others = F.linear(embedding, self.spread_maps).unflatten(-1, (self.num_lanes - 1, self.width))
        embedding = embedding.unsqueeze(-2)
        return torch.cat([embedding, at_length_of(embedding, others)], dim=-2)

    def collected(self, x: Tensor) -> Tensor:
        """What the head gets of the last lanes, before its norm: [B, T, n, D] -> [B, T, D]."""
        first, others = x.split([1, self.num_lanes - 1], dim=-2)
        pairs = zip(others.unbind(-2), self.collect_maps, strict=True)
        mapped = torch.stack([F.linear(lane, V) for lane, V in pairs], dim=-2)
        return torch.cat([first, at_length_of(first, mapped)], dim=-2).mean(-2)

    def corrected(self, site: int, state: State, written: Tensor) -> Tensor:
        """Eq. 3: the lanes [B, T, n, D] behind the MLP whose write is at `site`."""
        assert state.lanes is not None
        c = state.active + written
        weights = self._corrections(site // 2 - 1, c)
        return torch.addcmul(state.lanes, weights.unsqueeze(-1), (c - state.lanes[..., 0, :]).unsqueeze(-2))

    def lane_mixing(self, site: int, state: State, written: Tensor) -> Tensor:
        """How lanes P are mixed by the write at `site`, behind a block and up to the next reader [B, T, n, n].

        That is, to P' (to x in front of the head) from P, with weights as they are for this token; what is not a
        multiple of lanes (the block's output, z, LAuReL) counts as written. Attention leaves P as it is.
        """
        assert state.lanes is not None
        same = torch.eye(self.num_lanes, device=written.device).expand(*written.shape[:-1], -1, -1)
        if site % 2:
            return same
        layer, mixing = site // 2, same.clone()
        weights = self._corrections(layer - 1, state.active + written)
        if self.rank:  # c holds P_0 / sqrt(2)
            mixing[..., 0] += (1 / math.sqrt(2) - 1) * weights
        if site < len(self.readers) - 1:
            mixing = (same + self._predictions(layer, self.corrected(site, state, written))) @ mixing
        return mixing

    def _enter(self, site: int, x: Tensor) -> State:
        """Eq. 1 of the layer whose attention reads at `site`."""
        P = x + self._predictions(site // 2, x) @ x
        return State(P[..., 0, :], P)

    def _predictions(self, layer: int, x: Tensor) -> Tensor:
        """M [B, T, n, n] of lanes [B, T, n, D]."""
        return F.linear(self._routed(layer, x[..., 0, :]), self.predict[layer]).unflatten(-1, (self.num_lanes,) * 2)

    def _corrections(self, layer: int, c: Tensor) -> Tensor:
        """Of every lane 1 + (W_c r(c))_j [B, T, n]."""
        return 1 + F.linear(self._routed(layer, c), self.correct[layer])

    def _behind_attention(self, site: int, active: Tensor, written: Tensor) -> Tensor:
        """Eq. 2: a [B, T, D] behind the attention whose write is at `site`."""
        if not self.rank:
            return active + written
        layer, z = site // 2, self.norms[site - 1](active).to(active.dtype)
        low = F.linear(F.linear(z, self.get_parameter("down")[layer]), self.get_parameter("up")[layer])
        return (active + written + z + self.laurel_norms[layer](low)) / math.sqrt(2)

    def _routed(self, layer: int, v: Tensor) -> Tensor:
        """The function r [B, T, n] of [B, T, D]."""
        return F.linear(self.router_norms[layer](v) / self.width, self.router[layer]).tanh()


def at_length_of(target: Tensor, vectors: Tensor) -> Tensor:
    """Vectors [..., D] at the root mean square of others; their own is taken for sqrt(1e-5) where it is smaller."""
    wanted, own = (x.square().mean(-1, keepdim=True) for x in (target, vectors))
    return vectors * wanted.sqrt() / own.clamp(min=SMALLEST).sqrt()
