"""RMT that retrieves by content: a softmax over the state's rows, as Attention Residuals have over depth (ours).

    A^(h) = softmax_k( w^(h) . rms(norm(X)_k) )          a learned query w^(h) in R^{D_v} against the D_k rows
    pure     y^(h) = A^(h) . norm(X)                     in place of retrieval keys
    added    y^(h) = (r^(h) + A^(h) - 1 / D_k) . norm(X)          on top of them

What it changes: a read finds rows by what they hold; static keys are the linear version, which finds them by where they
are. Writes are RMT's. What it costs: D_v R parameters per role (pure: instead of D_k R); twice RMT's products for
retrieval, since every token has addresses of its own; the addresses [R, D_k] are kept for the backward pass.

RMT exactly: w = 0. Then A = 1 / D_k: `added` is RMT with its own keys, and starts there; `pure` is RMT with retrieval
keys that are all 1 / D_k, and starts with random queries, since equal ones would read the same for every head. It does
not start as the plain transformer. rms has no gain, which w would absorb.

Evidence: none on RMT. Attention Residuals, where the rows are the outputs of earlier blocks, take losses at 194M from
1.931 to 1.899 (arXiv 2603.15031); there leaving the norm of the rows out costs .006 and static weights .012 at 16
layers.

Letters: as in rmt.py.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from widestream.blocks.roles import Axis, Roles, size
from widestream.errors import UserError
from widestream.kernels.autocasting import no_autocast
from widestream.recipe.model import ModelConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.matrix.rmt import MatrixBase, MatrixFields


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixSoftmaxConfig(MatrixFields):
    """RMT with content-addressed reads."""

    kind: Literal["matrix_softmax"] = "matrix_softmax"
    """This stream."""
    form: Literal["pure", "added"] = "pure"
    """Whether addresses replace retrieval keys or are added to them."""


class MatrixSoftmaxStream(MatrixBase[MatrixSoftmaxConfig]):
    """X [B, T, V, K]; addresses [B, T, R, K] of every token."""

    Config = MatrixSoftmaxConfig
    examples = ({"key_dim": 16}, {"key_dim": 16, "form": "added"}, {"key_dim": 6, "norm_gain": "none"})

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        if self.pure and config.init.query_zero:
            raise UserError("No setting makes the queries of form: pure start at zero; use init.query_zero: false.")
        self.eps = config.norm_eps

    @property
    def pure(self) -> bool:
        """Whether there are no retrieval keys."""
        return self.settings.form == "pure"

    def declare_retrieval(self, site: int, vectors: tuple[Axis, ...], roles: Roles, zero_rows: int) -> None:
        """Queries w, and RMT's keys where they are kept."""
        parts = self.read_parts(site)
        role = roles.hidden((roles.head_dim,), vectors, "stream", decay="key", splits=parts)
        shape = (size(vectors), roles.head_dim.size)
        self.declare(f"query_{site}", shape, role if self.pure else replace(role, std=0.0))
        if not self.pure:
            super().declare_retrieval(site, vectors, roles, zero_rows)

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """RMT's matrix."""
        return replace(super().spec(config), undo="steps", papers=("2506.22696", "2603.15031"))

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """RMT's, with a query of width D_v for each retrieval key, instead of it or beside it."""
        settings = cls.settings_of(config)
        width = config.head_dim - (settings.key_dim if settings.form == "pure" else 0)
        return super().parameter_formula(config) + cls.vectors_read(config) * width

    def cost(self) -> StreamCost:
        """Storage as in RMT; per read the scores and the retrieval.

        Rows and addresses are saved besides; `added` saves both the softmax and its sum with the keys.
        """
        cost = super().cost()
        queries = sum(self.get_parameter(name).numel() for name in self.own_roles if name.startswith("query_"))
        scores = 2 * self.key_dim * queries
        rows = 4 * self.key_dim * self.value_dim * len(self.readers)
        addresses = 4 * self.key_dim * queries // self.value_dim
        return replace(
            cost,
            flops=cost.flops + (2 * scores if self.pure else scores),
            bytes_saved=cost.bytes_saved + rows + (addresses if self.pure else 2 * addresses),
        )

    def addresses(self, site: int, normed: Tensor) -> Tensor:
        """What multiplies the rows, for every data vector: [B, T, R, K]."""
        with no_autocast(normed.device):
            rows = normed * torch.rsqrt(normed.square().mean(-2, keepdim=True) + self.eps)
            attention = (getattr(self, f"query_{site}") @ rows).softmax(dim=-1)
        return attention if self.pure else getattr(self, f"read_{site}") + attention - 1 / self.key_dim

    def read(self, site: int, state: Tensor) -> dict[str, Tensor]:
        """y^(h) = A^(h) . norm(X)."""
        normed = self.norms[site](state)
        return self.hand_over(site, self.retrieve(self.addresses(site, normed), normed))
