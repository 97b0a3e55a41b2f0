"""RMT whose rows are mixed or forgotten between writes: a carry C over the key axis (ours; not published).

    X <- C X + sum_h w^(h) (x) y^(h)          C in R^{D_k x D_k}, one per write; RMT has C = I

    static     C = I + eps F                                   F free, starts at zero
    sinkhorn   C = diag(P_1, P_2, ...), P_g = Sinkhorn(exp(Z_g + 6 I))     doubly stochastic over groups of 4 rows
    decay      C = diag(gamma), gamma = sigmoid(6 + g)         one rate in (0, 1] per row

What it changes: rows may exchange content (static, sinkhorn) or fade (decay) with depth, where RMT only adds. What it
costs: D_k^2, 4 D_k or D_k parameters per write; 2 D_k^2 D_v, 8 D_k D_v or no FLOPs per token and write; no further
state, but no write can be undone: nothing holds a learned carry away from singular maps, and what has faded cannot be
rebuilt from what is left, so that `train.stream_memory: writes` replays states from anchors. A carry made from the
whole state, as mHC's is, would need D_k D_v D_k^2 weights per write, so it is left out.

RMT exactly: F = 0, where `static` starts; Z far above zero on the diagonal; g far above zero. The last two start close
to it, each row keeping 0.993 and 0.998 of itself per write, because at the identity itself their gradients vanish.
Weight decay pulls every form towards its start. It does not start as the plain transformer.

Evidence: none on RMT. On lanes of full width a free carry is most of Hyper-Connections' gain (OLMo-1B, four lanes,
static: V2 loss 2.811 -> 2.791, arXiv 2409.19606); doubly stochastic carries make it stable (mHC, 27B: -.022 of its
-.027 comes from them, 2512.24880), yet identity carries did nearly as well in later ablations. Scalars on the old
state are LAuReL-RW (2411.07501).

Letters: as in rmt.py; G groups of g rows.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.roles import Role, Roles
from widestream.errors import UserError
from widestream.kernels.autocasting import no_autocast
from widestream.recipe.model import ModelConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.lanes.mhc import sinkhorn
from widestream.streams.matrix.rmt import MatrixBase, MatrixFields

GROUP = 4
"""Rows that a doubly stochastic block mixes."""
START = 6.0
"""Logit with which every row keeps itself at first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixCarryConfig(MatrixFields):
    """RMT with a carry over key rows."""

    kind: Literal["matrix_carry"] = "matrix_carry"
    """This stream."""
    form: Literal["static", "sinkhorn", "decay"] = "static"
    """[C] Free around the identity, doubly stochastic over groups of 4 rows, or one rate per row."""
    eps: float = 0.1
    """static: factor on the free part, which slows down its learning."""

    def __post_init__(self):
        MatrixFields.__post_init__(self)  # super() does not work in dataclasses with slots
        if self.form == "sinkhorn" and self.key_dim % GROUP:
            raise UserError(
                f"model.stream.key_dim is {self.key_dim}; form: sinkhorn mixes groups of {GROUP} rows, "
                f"so it must be a multiple of {GROUP}."
            )
        if self.eps <= 0:
            raise UserError(f"model.stream.eps is {self.eps}; it must be above 0. Without a carry, use kind: matrix.")


class MatrixCarryStream(MatrixBase[MatrixCarryConfig]):
    """X [B, T, V, K], multiplied by C along K before every write but the embedding's."""

    Config = MatrixCarryConfig
    examples = (
        {"key_dim": 16},
        {"key_dim": 16, "form": "sinkhorn"},
        {"key_dim": 6, "form": "decay"},
    )

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        free = replace(roles.hidden((self.keys,), (self.keys,), "stream", decay="key"), std=0.0)
        table = Role(std=0.0, decay="key", part="stream")
        shape, role = {
            "static": ((self.key_dim, self.key_dim), free),
            "sinkhorn": ((self.key_dim // GROUP, GROUP, GROUP), table),
            "decay": ((self.key_dim,), table),
        }[self.settings.form]
        for site in range(1, len(self.readers)):
            self.declare(f"carry_{site}", shape, role)

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """RMT's matrix."""
        return replace(
            super().spec(config), undo="replay", papers=("2506.22696", "2409.19606", "2512.24880", "2411.07501")
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """RMT's, and D_k^2, 4 D_k or D_k for the carry of every block's write."""
        settings = cls.settings_of(config)
        per_row = {"static": settings.key_dim, "sinkhorn": GROUP, "decay": 1}[settings.form]
        return super().parameter_formula(config) + config.num_blocks * settings.key_dim * per_row

    def cost(self) -> StreamCost:
        """RMT's, and a product along the key axis per write, whose input is already saved for the norm."""
        cost = super().cost()
        per_row = {"static": self.key_dim, "sinkhorn": GROUP, "decay": 0}[self.settings.form]
        products = 2 * self.key_dim * per_row * self.value_dim * (len(self.readers) - 1)
        anchors = 4 * self.key_dim * self.value_dim * len(self.anchored)
        assert cost.bytes_saved_writes is not None
        return replace(cost, flops=cost.flops + products, bytes_saved_writes=cost.bytes_saved_writes + anchors)

    def carry(self, site: int, state: Tensor) -> Tensor:
        """C X."""
        weight = getattr(self, f"carry_{site}")
        with no_autocast(state.device):
            if self.settings.form == "static":
                return state + self.settings.eps * F.linear(state, weight)
            if self.settings.form == "decay":
                return state * torch.sigmoid(START + weight)
            mixing = sinkhorn(weight + START * torch.eye(GROUP, device=weight.device))
            return torch.einsum("btvgj,gij->btvgi", state.unflatten(-1, (-1, GROUP)), mixing).flatten(-2)

    def write(self, site: int, state: Tensor, written: Tensor) -> Tensor:
        """X <- C X + sum_h w^(h) (x) y^(h)."""
        return super().write(site, self.carry(site, state), written)
