"""Hyper-connections: n lanes, read and written with learned weights (Zhu et al., arXiv 2409.19606).

    u  = A_m^T H             one mixture of the lanes H [n, D] is what the block gets
    H' = B y + A_r^T H       its output y goes to every lane, with weights B [n], and the lanes are mixed
    static    A = A_0, B = B_0
    dynamic   [A_m A_r] = A_0 + s_alpha tanh(norm(H) W_alpha),  B = B_0 + s_beta tanh(norm(H) w_beta)

The embedding is copied to every lane and the head gets their mean. Start: W = 0, s = 0.01, B_0 = 1, A_r = I, and the
block of site k gets lane k mod n: each lane holds the plain stream then, and the model is the plain transformer.

Cost per block: n (n + 2) parameters, dynamic D (n + 2) + 2 more and a gain; the state is n times as wide, and moving it
is what costs. At GPT-2 small with n = 4: 576 static, 111 216 dynamic without gains, 0.13 % of the model.

Evidence: OLMo-1B at 500B tokens, loss on V2: plain 2.811; dynamic n = 1, 2, 4, 8: 2.819, 2.802, 2.781, 2.778; static
n = 4: 2.791; without tanh 2.779. A single lane is worse than none. OLMo-7B: 2.581 -> 2.559. Others report gains that
vanish or diverge at larger scale ("Most Modifications Don't Transfer", 2605.20798), lanes that stayed equal from the
plain start and gained nothing (modded-nanogpt #230), and composite gains of the free
A_r near 3000 in depth (2512.24880, which constrains it: mhc.py).

Where paper and code part: both give the head the lanes' sum, and the paper divides the initial output maps by sqrt(n),
to keep its scale; here as in the code of lucidrains/hyper-connections they stay, and the head's norm takes the scale
out. It would do so up to its eps only: at the published RMT code's initialisation (mean squares of 4e-4, eps 1e-6) the
sum of 4 lanes moves logits by 1.4e-3 of their size, and some gradients as much, so here it is the mean. That code
normalises as RMSNorm and multiplies by gain + 1; here the norm is the model's and its gain starts at 1.

All lanes are equal in front of the first block, so that its A_m only sets a scale that the norm removes again (up to
its eps). Lanes are told apart by which block starts by reading them. With n > S lanes for S blocks, lane 0 (of the
first block) and lanes S, S + 1, ... are read by none of the others, and stay equal copies for ever.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widestream.blocks.norm import Norm, norm_size, read_norms_size
from widestream.blocks.roles import Role, Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.lanes.base import EQUAL_LANES, LaneBase, warn_of_equal_lanes


@dataclass(frozen=True, kw_only=True, slots=True)
class HyperConnectionsConfig(StreamConfig):
    """Settings of hyper-connections."""

    kind: Literal["hyper_connections"] = "hyper_connections"
    """This stream."""
    lanes: int = 4
    """[n] Lanes, each as wide as the plain stream."""
    dynamic: bool = True
    """Whether the weights also depend on what is in the lanes (DHC), or are learned numbers alone (SHC)."""
    tanh: bool = True
    """Dynamic: bound that part by tanh; the paper's ablation without it is as good."""

    def __post_init__(self):
        if self.lanes < 1:
            raise UserError(f"model.stream.lanes is {self.lanes}; it must be at least 1.")


class HyperConnectionsStream(LaneBase[HyperConnectionsConfig]):
    """H [B, T, n, D]; weights per site, those of all blocks in one table."""

    Config = HyperConnectionsConfig
    limits = (EQUAL_LANES,)
    examples = ({}, {"dynamic": False}, {"lanes": 2, "tanh": False}, {"lanes": 1, "dynamic": False})

    A: Tensor
    """[A_m A_r], the static part, of every block [S, n, 1 + n]."""
    B: Tensor
    """The static part of every block [S, n]."""
    W: Tensor
    """Dynamic: [W_alpha w_beta] of every block [S, n + 2, D]."""
    s_alpha: Tensor
    """Dynamic: scale of every block [S]."""
    s_beta: Tensor
    """Dynamic: scale of every block [S]."""

    def __init__(self, config: ModelConfig, roles: Roles):
        settings = self.settings_of(config)
        super().__init__(config, roles, settings.lanes)
        n, S, D = settings.lanes, self.num_blocks, config.embed_dim
        table = Role(std=0.0, decay="none", part="stream")
        self.declare("A", (S, n, 1 + n), table)
        self.declare("B", (S, n), table)
        if not settings.dynamic:
            return
        weights = roles.hidden((roles.width,), (), "stream", decay="key")
        self.declare("W", (S, n + 2, D), replace(weights, std=0.0, muon=False))
        self.declare("s_alpha", (S,), table)
        self.declare("s_beta", (S,), table)
        self.lane_norms = nn.ModuleList(Norm(config, roles, (D,)) for _ in range(S))

    def initial_values(self) -> dict[str, Tensor]:
        """A_m = e_(k mod n), A_r = I, B = 1, s = 0.01."""
        n, S = self.lanes, self.num_blocks
        one = torch.eye(n)[torch.arange(S) % n]
        values = {"A": torch.cat([one.unsqueeze(-1), torch.eye(n).expand(S, n, n)], dim=-1), "B": torch.ones(S, n)}
        if self.settings.dynamic:
            values |= {"s_alpha": torch.full((S,), 0.01), "s_beta": torch.full((S,), 0.01)}
        return values

    @classmethod
    def warnings(cls, config: ModelConfig) -> list[str]:
        """Too many lanes."""
        return warn_of_equal_lanes(cls.settings_of(config).lanes, config)

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """Lanes of width D, n of them."""
        settings = cls.settings_of(config)
        return StreamSpec(
            state_shape=(settings.lanes, config.embed_dim), starts_plain=True, undo="replay", papers=("2409.19606",)
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """2 L n (n + 2), dynamic 2 L (D (n + 2) + 2 + D) more, and the plain stream's (2 L + 1) D gains."""
        settings = cls.settings_of(config)
        n, D, blocks = settings.lanes, config.embed_dim, config.num_blocks
        dynamic = D * (n + 2) + 2 + norm_size(config, D) if settings.dynamic else 0
        return blocks * (n * (n + 2) + dynamic) + read_norms_size(config, D)

    def cost(self) -> StreamCost:
        """Mixing and writing; dynamic: also the product with W, which keeps the normalised lanes."""
        cost = self._block_cost()
        return replace(cost, bytes_saved=cost.bytes_saved - 4 * (self.lanes - 1) * self.lane_width)  # one copy at first

    def _block_cost(self) -> StreamCost:
        if not self.settings.dynamic:
            return self.lane_cost(0, mixes=True, dynamic=False)
        state, outputs = self.lanes * self.lane_width, self.lanes * (self.lanes + 2)
        kept = state + outputs * (2 if self.settings.tanh else 1)
        return self.lane_cost(2 * self.lane_width * outputs, mixes=True, dynamic=True, kept=kept)

    def coefficients(self, site: int, H: Tensor) -> tuple[Tensor, Tensor]:
        """A = A_0 + s_alpha tanh(norm(H) W_alpha), B = B_0 + s_beta tanh(norm(H) w_beta)."""
        A, B = self.A[site], self.B[site]
        if self.settings.dynamic:
            dynamic = F.linear(self.lane_norms[site](H), self.W[site])  # [B, T, n, (1 + n) + 1]
            dynamic = dynamic.tanh() if self.settings.tanh else dynamic
            A = A + self.s_alpha[site] * dynamic[..., :-1]
            B = B + self.s_beta[site] * dynamic[..., -1]
        return A.mT, B.unsqueeze(-2)
