"""RMT that writes by the delta rule: what lies under a key is erased as the new vector is stored (ours).

    X <- X + K^T diag(beta) (V - K X)          K [R, D_k] unit keys, V [R, D_v] the block's R vectors, beta in (0, 2)^R

    static     beta_h = 2 sigmoid(b_h)
    token      beta_h = 2 sigmoid(b_h + u_h . rms(v_h))         u_h in R^{D_v}, starts at zero

All R vectors are written at once. For a lone key, beta = 0 writes nothing, beta = 1 replaces what the key retrieved by
v_h, beta = 2 reflects. The map on X is I - K^T diag(beta) K, which enlarges nothing as long as the norm of
K^T diag(beta) K is at most 2. K X is read from the state itself, not from its norm. The embedding is written as in RMT.

What it changes: an address can be overwritten; RMT can only add. What it costs: R parameters per write (token:
R + R D_v), and one more product with the keys per write.

RMT exactly: erase: false with static beta, X <- X + K^T diag(beta) V, is RMT with storage keys w^(h) = beta_h k^(h).
beta starts where those keys have the norm that RMT's start with, but at most at 1 / (1 + sqrt(R / D_k))^2, where
random keys erase no more than what is there. It does not start as the plain transformer.

Evidence: none on RMT. Deep Delta Learning (arXiv 2601.00417), with the address on the features, has 2.8543 -> 2.8482
at 124M without widening the state and 2.8299 with a state four times as wide, most of it thus from width; its authors
ran no wide state that only adds. RMT is that control here, and `erase: false` the same parametrisation without erasing.
There k comes from the block's output and v is a projection; here v is the output and k static, as RMT has it.

Letters: as in rmt.py.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.roles import Role, Roles
from widestream.recipe.model import ModelConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.matrix.rmt import MatrixBase, MatrixFields

EPS = 1e-6
"""Added to the mean square of v_h."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixDeltaConfig(MatrixFields):
    """RMT with delta writes."""

    kind: Literal["matrix_delta"] = "matrix_delta"
    """This stream."""
    beta: Literal["static", "token"] = "static"
    """[beta] One number per head and write, or made from the vector that is written."""
    erase: bool = True
    """Whether K X is taken away; false: V is only added."""


class MatrixDeltaStream(MatrixBase[MatrixDeltaConfig]):
    """X [B, T, V, K]."""

    Config = MatrixDeltaConfig
    examples = (
        {"key_dim": 16},
        {"key_dim": 16, "beta": "token"},
        {"key_dim": 6, "erase": False},
    )

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        self.conditioned = self.settings.beta == "token"
        for site in range(1, len(self.readers)):
            self.declare(f"beta_{site}", (self.rank,), Role(std=0.0, decay="none", part="stream"))
            if self.conditioned:
                role = replace(roles.hidden((roles.head_dim,), (roles.heads,), "stream", decay="key"), std=0.0)
                self.declare(f"gate_{site}", (self.value_dim, self.rank), role)

    def initial_values(self) -> dict[str, Tensor]:
        """The logits b of the first beta."""
        stable = 1 / (1 + math.sqrt(self.rank / self.key_dim)) ** 2
        values = {}
        for site in range(1, len(self.readers)):
            norm = (self.own_roles[f"write_{site}"].std or 0.0) * math.sqrt(self.key_dim)
            half = min(norm, stable) / 2
            values[f"beta_{site}"] = torch.full((self.rank,), math.log(half / (1 - half)))
        return values

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """RMT's matrix."""
        return replace(super().spec(config), undo="steps", papers=("2506.22696", "2601.00417"))

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """RMT's, and per write R logits and, if beta depends on the token, R vectors u_h."""
        per_head = 1 + (config.head_dim if cls.settings_of(config).beta == "token" else 0)
        writes = config.num_blocks
        return super().parameter_formula(config) + writes * config.num_heads * per_head

    def cost(self) -> StreamCost:
        """RMT's, and K X per write; V - K X is saved, and so is what beta is made from.

        To undo a write, diag(beta) (V - K X) is kept.
        """
        cost, writes = super().cost(), len(self.readers) - 1
        products = 2 * self.rank * self.key_dim * self.value_dim * writes if self.settings.erase else 0
        saved = 4 * self.rank * self.value_dim * writes * (3 if self.conditioned else 1)
        assert cost.bytes_saved_writes is not None
        changes = 4 * self.rank * self.value_dim * writes
        return replace(
            cost,
            flops=cost.flops + products,
            bytes_saved=cost.bytes_saved + saved,
            bytes_saved_writes=cost.bytes_saved_writes + changes,
        )

    def beta(self, site: int, data: Tensor) -> Tensor:
        """[R], or of every token [B, T, 1, R]."""
        logits = getattr(self, f"beta_{site}")
        if self.conditioned:
            rms = torch.sqrt(data.square().mean(-2, keepdim=True) + EPS)
            logits = logits + (getattr(self, f"gate_{site}") * data / rms).sum(-2, keepdim=True)
        return 2 * torch.sigmoid(logits)

    def unit_keys(self, site: int) -> Tensor:
        """[K, R], the transpose of the equation's K."""
        return F.normalize(getattr(self, f"write_{site}"), dim=0)

    def write(self, site: int, state: Tensor, written: Tensor) -> Tensor:
        """X <- X + K^T diag(beta) (V - K X)."""
        return self.write_keeping(site, state, written)[0]

    def write_keeping(self, site: int, state: Tensor, written: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same, and diag(beta) (V - K X) [B, T, V, R]."""
        keys = self.unit_keys(site)
        data = self.data(written).to(keys.dtype)
        change = data - self.retrieve(keys.mT, state) if self.settings.erase else data
        change = self.beta(site, data) * change
        return state + self.store(keys, change), (change,)

    def undo(self, site: int, state: Tensor, written: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
        """X - K^T diag(beta) (V - K X)."""
        return state - self.store(self.unit_keys(site), kept[0])
