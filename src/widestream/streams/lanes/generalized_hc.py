"""Virtual width networks: generalised hyper-connections (ByteDance Seed, arXiv 2511.11238).

    u  = A^T H               A [n, m]: m of n slots' mixtures, side by side, are what the block gets
    H' = B^T y + C^T H       B [m, n], C [n, n]; y in m segments
    static    A = A_0, B = B_0, C = C_0
    dynamic   B = B_0 + S_beta o tanh(norm(H) W_beta / tau)^T,  [A C] = [A C]_0 + S_alpha o tanh(norm(H) W_alpha / tau)
    read-out  GroupNorm(groups of D) -> linear r D -> D, then the norm in front of the head

Slots have width W = D / m, so that n of them make a virtual width of r D with r = n / m; tau = sqrt(W).
Hyper-connections widen the state by copies, this by finer parts; m = 1 are hyper-connections but for the two ends. Of
the published designs it is the closest to the Residual Matrix Transformer: with m = R, n = D_k and C = I, its static A
and B are the keys of that one's MLP (tested).

The embedding has the virtual width, or the plain width and a linear map behind it. Start: W = 0, S = 1, C = I; slot i
feeds segment i, and segment i writes slots i, i + m, i + 2 m, ... The backbone is the plain transformer's then; slots
beyond m are written, but only the read-out sees them. With `readout: plain` (the first m slots alone) and an embedding
whose first m slots are the plain one's, the whole model is the plain transformer. With `embedding: expand` besides,
nothing tells slot m + j from slot 2 m + j: they stay equal copies for ever.

Cost per block: W (2 m + n) + 2 (n (m + n) + m n) + W parameters; at GPT-2 small, beside the two ends, 74 736 in all for
(m, n) = (2, 3) and 173 568 for (12, 32); static n (m + n) + m n. A wider state costs mainly the moving of it.

Evidence: mixture of experts with 0.8B active, 500B tokens, m = 8: next-token loss -0.020, -0.028, -0.035 at r = 2, 4
and 8, about -0.0069 per doubling; m hardly matters beyond 4. 3.3B active, (8, 64): the same loss with 2.5 times fewer
tokens, the lead growing from 0.025 to 0.032 until 3T tokens. Its authors expect r = 1.5 to 4 to be practical.

Open in the paper as we could read it, chosen here: groups are of D numbers where m divides n, else of as many slots as
divide both; the linear embedding map starts as copies (slot j gets segment j mod m), and weight decay leaves it alone.
No published code.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widestream.blocks.norm import Norm, norm_size, read_norms_size
from widestream.blocks.roles import Axis, Role, Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.lanes.base import LaneBase


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneralizedHCConfig(StreamConfig):
    """Settings of generalised hyper-connections."""

    kind: Literal["generalized_hc"] = "generalized_hc"
    """This stream."""
    segments: int = 8
    """[m] Parts that a block's input and output are cut into; it divides the width D."""
    slots: int = 16
    """[n] Slots of the state, each of width D / m; at least m."""
    dynamic: bool = True
    """Whether the weights also depend on what is in the slots, or are learned numbers alone."""
    embedding: Literal["virtual", "expand"] = "virtual"
    """Token and position vectors of the virtual width, or of width D with a linear map to it."""
    readout: Literal["group_norm", "plain"] = "group_norm"
    """What the head gets: all slots through a group norm and a linear map, or the first m slots."""

    def __post_init__(self):
        if self.segments < 1:
            raise UserError(f"model.stream.segments is {self.segments}; it must be at least 1.")
        if self.slots < self.segments:
            raise UserError(
                f"model.stream.slots is {self.slots}; it must be at least model.stream.segments, {self.segments}."
            )


class GeneralizedHCStream(LaneBase[GeneralizedHCConfig]):
    """H [B, T, n, W]; weights per site, those of all blocks in one table."""

    Config = GeneralizedHCConfig
    limits = (
        "With embedding: expand, readout: plain and slots at least 3 times the segments, slots that are neither read "
        "nor told apart stay equal copies of each other, in training too.",
    )
    examples = (
        {},
        {"segments": 2, "slots": 3},
        {"segments": 4, "slots": 8, "dynamic": False, "embedding": "expand"},
        {"segments": 4, "slots": 6, "embedding": "expand", "readout": "plain"},
        {"segments": 1, "slots": 1, "readout": "plain"},
    )

    A: Tensor
    """[A C], the static part, of every block [S, n, m + n]."""
    B: Tensor
    """The static part of every block [S, m, n]."""
    W: Tensor
    """Dynamic: [W_alpha W_beta] of every block [S, (m + n) + m, W]."""
    S_alpha: Tensor
    """Dynamic: scales of every block [S, n, m + n]."""
    S_beta: Tensor
    """Dynamic: scales of every block [S, m, n]."""
    expand: Tensor
    """From the width to the virtual width [n W, D]."""
    readout: Tensor
    """From the virtual width to the width [D, n W]."""

    def __init__(self, config: ModelConfig, roles: Roles):
        settings = self.settings_of(config)
        m, n, D = settings.segments, settings.slots, config.embed_dim
        if D % m:
            raise UserError(f"model.stream.segments, {m}, must divide the model's width, {D}.")
        super().__init__(config, roles, n, m)
        S = self.num_blocks
        self.embedded = n * self.lane_width if settings.embedding == "virtual" else D
        assert roles.width.base is not None
        self.virtual = Axis(n * self.lane_width, max(1, roles.width.base * n // m))
        table = Role(std=0.0, decay="none", part="stream")
        self.declare("A", (S, n, m + n), table)
        self.declare("B", (S, m, n), table)
        if settings.dynamic:
            self._declare_dynamic(config, roles)
        if settings.embedding == "expand":
            copies = replace(roles.hidden((roles.width,), (self.virtual,), "stream"), std=0.0, decay="none")
            self.declare("expand", (n * self.lane_width, D), copies)
        if settings.readout == "group_norm":
            self.declare("readout", (D, n * self.lane_width), roles.hidden((self.virtual,), (roles.width,), "stream"))
            group = math.gcd(m, n)
            self.groups = (n // group, group * self.lane_width)
            self.group_norm = Norm(config, roles, self.groups[1:], self.groups)

    def _declare_dynamic(self, config: ModelConfig, roles: Roles) -> None:
        m, n, S, width = self.segments, self.lanes, self.num_blocks, (self.lane_width,)
        weights = roles.hidden((roles.width,), (), "stream", decay="key")
        self.declare("W", (S, 2 * m + n, self.lane_width), replace(weights, std=0.0, muon=False))
        ones = Role(std=None, decay="none", part="stream")
        self.declare("S_alpha", (S, n, m + n), ones)
        self.declare("S_beta", (S, m, n), ones)
        self.slot_norms = nn.ModuleList(Norm(config, roles, width) for _ in range(S))

    def initial_values(self) -> dict[str, Tensor]:
        """[A C] = [I_m I_m 0; 0 0 I_(n-m)], B[i, j] = 1 where i = j mod m, and the same pattern for the embedding."""
        m, n, S = self.segments, self.lanes, self.num_blocks
        written = torch.eye(m)[:, torch.arange(n) % m]
        values = {
            "A": torch.cat([torch.eye(n, m), torch.eye(n)], dim=1).expand(S, n, m + n),
            "B": written.expand(S, m, n),
        }
        if self.settings.embedding == "expand":
            copies = written.T.clone(memory_format=torch.contiguous_format)  # a row alone counts as contiguous anyway
            values["expand"] = torch.kron(copies, torch.eye(self.lane_width))
        return values

    @classmethod
    def warnings(cls, config: ModelConfig) -> list[str]:
        """Slots that start as copies, and are not read."""
        settings = cls.settings_of(config)
        copies = settings.embedding == "expand" and settings.readout == "plain"
        if not copies or settings.slots < 3 * settings.segments:
            return []
        return [
            f"model.stream.slots is {settings.slots} with embedding: expand and readout: plain: slots behind the first "
            f"{2 * settings.segments} will stay equal copies of earlier ones; take another embedding or readout."
        ]

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """Slots of width D / m, n of them."""
        settings = cls.settings_of(config)
        same_embedding = settings.embedding == "expand" or settings.slots == settings.segments
        return StreamSpec(
            state_shape=(settings.slots, config.embed_dim // settings.segments),
            starts_plain=settings.readout == "plain" and same_embedding,
            undo="replay",
            papers=("2511.11238",),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """2 L (n (m + n) + m n), dynamic as much again and 2 L (W (2 m + n) + W); ends; the plain (2 L + 1) D gains."""
        settings = cls.settings_of(config)
        m, n, D, blocks = settings.segments, settings.slots, config.embed_dim, config.num_blocks
        W, weights = D // m, n * (m + n) + m * n
        per_block = 2 * weights + W * (2 * m + n) + norm_size(config, W) if settings.dynamic else weights
        ends = n * W * D if settings.embedding == "expand" else 0
        ends += n * W * D + norm_size(config, n * W) if settings.readout == "group_norm" else 0
        return blocks * per_block + ends + read_norms_size(config, D)

    def cost(self) -> StreamCost:
        """Mixing, writing and the maps at the ends; dynamic: the product with W, which keeps the normalised slots."""
        settings = self.settings
        state, width = self.lanes * self.lane_width, self.segments * self.lane_width
        outputs = self.lanes * (2 * self.segments + self.lanes) if settings.dynamic else 0
        kept = state + outputs + 2 * self.lanes if settings.dynamic else 0
        cost = self.lane_cost(2 * self.lane_width * outputs, mixes=True, dynamic=settings.dynamic, kept=kept)
        maps = (settings.embedding == "expand") + (settings.readout == "group_norm")
        kept = (settings.embedding == "expand") * width + (settings.readout == "group_norm") * 2 * state
        return replace(cost, flops=cost.flops + maps * 2 * state * width, bytes_saved=cost.bytes_saved + 4 * kept)

    def embedding_axes(self, roles: Roles) -> tuple[Axis, ...]:
        """The virtual width r D, or D."""
        return (self.virtual,) if self.settings.embedding == "virtual" else (roles.width,)

    def spread(self, embedding: Tensor) -> Tensor:
        """The embedding, cut into slots [B, T, n, W]."""
        wide = F.linear(embedding, self.expand) if self.settings.embedding == "expand" else embedding
        return wide.unflatten(-1, (self.lanes, self.lane_width))

    def read_out(self, H: Tensor) -> Tensor:
        """GroupNorm and r D -> D, or the first m slots side by side."""
        if self.settings.readout == "plain":
            return H[..., : self.segments, :].flatten(-2)
        return F.linear(self.group_norm(H.flatten(-2).unflatten(-1, self.groups)).flatten(-2), self.readout)

    def coefficients(self, site: int, H: Tensor) -> tuple[Tensor, Tensor]:
        """A, C and B from the tables, and dynamically from every slot's own content."""
        A, B = self.A[site], self.B[site]
        if self.settings.dynamic:
            tau = math.sqrt(self.lane_width)
            dynamic = torch.tanh(F.linear(self.slot_norms[site](H), self.W[site]) / tau)  # [B, T, n, (m + n) + m]
            A = A + self.S_alpha[site] * dynamic[..., : -self.segments]
            B = B + self.S_beta[site] * dynamic[..., -self.segments :].mT
        return A.mT, B
