"""RMT without the MLP's matrices: retrieval, non-linearity, storage (ours; the RMT paper leaves this untested).

    y^(m) = GELU( r^(m) . norm(X) ),  m = 1..M          M vectors of width D_v, M as large as one likes
    X <- X + sum_m w^(m) (x) y^(m)

With a gate (model.activation: swiglu, ...) 2 M vectors are retrieved, the gates first: y^(m) = act(g^(m)) * u^(m).

What it changes: the MLP is two sets of keys, as RMT's attention is four; no matrix is left between embedding and head.
Keys mix rows only, so nothing but attention's scores ever mixes the D_v columns: if this model is much worse than RMT,
the MLP's matrices are what mixes them. What it costs: 2 M D_k parameters per layer instead of 2 R D_k + 2 D F;
M = F / D_v by default, which is as many non-linear units as the MLP had neurons.

RMT exactly: as RMT's case W_1 = A (x) I, W_2 = B (x) I, the identity on D_v. It then retrieves with keys A r and stores
with keys w B, of which there are M = F / D_v. A = B = I with M = R is the plainest. It does not start as the plain
transformer.

Evidence: none. Depth scaling acts on the storage keys, there being no W_2.

Letters: as in rmt.py; M vectors of the MLP.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from widestream.blocks.roles import Axis, Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.streams.base import Block, Reader
from widestream.streams.matrix.rmt import MatrixBase, MatrixFields


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixKeysConfig(MatrixFields):
    """RMT with an MLP of keys alone."""

    kind: Literal["matrix_keys"] = "matrix_keys"
    """This stream."""
    mlp_rank: int | None = None
    """[M] Vectors that the MLP retrieves and stores; default: mlp_dim / head_dim, rounded up."""

    def __post_init__(self):
        MatrixFields.__post_init__(self)  # super() does not work in dataclasses with slots
        if self.mlp_rank is not None and self.mlp_rank < 1:
            raise UserError(f"model.stream.mlp_rank is {self.mlp_rank}; it must be at least 1.")
        if self.depth_scale_site == "W2":
            raise UserError("A matrix_keys stream has no W_2 to scale; use depth_scale_site: w_FF.")


class MatrixKeysStream(MatrixBase[MatrixKeysConfig]):
    """X [B, T, V, K]."""

    Config = MatrixKeysConfig
    examples = ({"key_dim": 16}, {"key_dim": 6, "mlp_rank": 12})

    def __init__(self, config: ModelConfig, roles: Roles):
        rank = _mlp_rank(self.settings_of(config), config)
        assert roles.neurons.base is not None
        assert roles.head_dim.base is not None
        growth = roles.neurons.size * roles.head_dim.base / (roles.neurons.base * roles.head_dim.size)
        self.gated = config.gated
        self.mlp_vectors = Axis(rank, max(1, round(rank / growth)))
        super().__init__(config, roles)

    def written_axes(self, roles: Roles, block: Block) -> tuple[Axis, ...]:
        """M vectors of an MLP."""
        return (roles.head_dim, self.mlp_vectors) if block.kind == "mlp" else super().written_axes(roles, block)

    @classmethod
    def blocks(cls, config: ModelConfig) -> list[Block]:
        """As ever, but MLPs are their non-linearity alone."""
        return [replace(block, num_neurons=0) if block.kind == "mlp" else block for block in super().blocks(config)]

    def vectors(self, reader: Reader, roles: Roles) -> tuple[Axis, ...]:
        """M for the MLP, or with a gate 2 M."""
        if reader != "mlp":
            return super().vectors(reader, roles)
        return (Axis(2), self.mlp_vectors) if self.gated else (self.mlp_vectors,)

    def hand_over(self, site: int, data: Tensor) -> dict[str, Tensor]:
        """As ever; with a gate all gates in front of all that they act on."""
        if self.gated and self.readers[site] == "mlp":
            data = torch.cat(data.chunk(2, dim=-1), dim=-2)  # [B, T, V, 2 M] -> [B, T, 2 V, M]
        return super().hand_over(site, data)

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """RMT's with M, and for reads with a gate 2 M, instead of R in the two sets of the MLP's keys."""
        settings = cls.settings_of(config)
        vectors = (3 if config.gated else 2) * _mlp_rank(settings, config) - 2 * config.num_heads
        mlps = config.num_blocks - config.num_attentions
        return super().parameter_formula(config) + mlps * vectors * settings.key_dim


def _mlp_rank(settings: MatrixKeysConfig, config: ModelConfig) -> int:
    """M."""
    return settings.mlp_rank or -(-config.mlp_dim // config.head_dim)
