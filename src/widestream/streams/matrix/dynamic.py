"""RMT with keys that depend on the token: static keys plus a small part made from the state's own rows (ours).

    r^(h)_k(X) = r^(h)_k + s tanh( norm(X)_k . W_r^(h) )          reads:  y^(h) = r^(h)(X) . norm(X)
    w^(h)_k(X) = w^(h)_k + s tanh( norm(X)_k . W_w^(h) )          writes: X <- X + sum_h w^(h)(X) (x) y^(h)

One vector W^(h) in R^{D_v} gives the D_k coefficients of a key, each from the row that it addresses; so a role costs
D_v R weights (W in R^{D_v x R}) and not D_k D_v D_k R. X is the state that the block has read: a block's storage keys
come from the same norm(X) as its retrieval keys. The embedding's storage keys stay static.

What it changes: where heads read and write may differ from token to token. What it costs: 6 D_v R + 4 parameters per
layer and D_v R + 1 for the head; twice RMT's products for keys, since every token has keys of its own; the normalised
state is kept from the read to the next write.

RMT exactly: W = 0, where it starts (s starts at 0.01, as in dynamic Hyper-Connections), or s = 0. It does not start
as the plain transformer.

Evidence: none published on RMT. The form is that of dynamic Hyper-Connections (OLMo-1B, four lanes: V2 loss 2.791
static, 2.781 dynamic, arXiv 2409.19606) and of virtual width networks, where one row makes its own coefficients
(2511.11238). Unreviewed single runs of a token-conditioned RMT report a gain of about .03 that shrinks with training,
at 35 to 43 % less throughput at 1.4B.

Letters: as in rmt.py.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from widestream.blocks.roles import Role, Roles, size
from widestream.kernels.autocasting import no_autocast
from widestream.recipe.model import ModelConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.matrix.rmt import MatrixBase, MatrixFields

START = 0.01
"""Factor s on the dynamic part at first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixDynamicConfig(MatrixFields):
    """RMT with dynamic keys."""

    kind: Literal["matrix_dynamic"] = "matrix_dynamic"
    """This stream."""


class DynamicState(NamedTuple):
    """What lies between two exchanges."""

    X: Tensor
    """The state [B, T, V, K]."""
    normed: Tensor
    """norm(X), as the reader gets it; the next write's keys come from it."""


class MatrixDynamicStream(MatrixBase[MatrixDynamicConfig]):
    """X [B, T, V, K] and its norm; keys [B, T, R, K] of every token."""

    Config = MatrixDynamicConfig
    examples = ({"key_dim": 16}, {"key_dim": 6, "norm_gain": "row", "depth_scale_site": "W2"})

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        for site, reader in enumerate(self.readers):
            vectors = self.vectors(reader, roles)
            ends = {f"read_{site}": vectors} | ({} if reader == "head" else {f"write_{site + 1}": (roles.heads,)})
            for keys, out in ends.items():
                parts = self.read_parts(site) if out is vectors else ()
                role = replace(roles.hidden((roles.head_dim,), out, "stream", decay="key", splits=parts), std=0.0)
                self.declare(f"map_{keys}", (size(out), self.value_dim), role)
                self.declare(f"scale_{keys}", (1,), Role(std=0.0, decay="none", part="stream"))

    def initial_values(self) -> dict[str, Tensor]:
        """Factors s start at 0.01."""
        return {name: torch.tensor([START]) for name in self.own_roles if name.startswith("scale_")}

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """RMT's matrix."""
        return replace(super().spec(config), undo="steps", papers=("2506.22696", "2409.19606", "2511.11238"))

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """RMT's, D_v for every vector that is read or that a block writes, (6 L + 1) R of them, and 4 L + 1 factors.

        With ShortSWA 4 L R and 2 L more.
        """
        blocks = config.num_blocks
        vectors = cls.vectors_read(config) + blocks * config.num_heads
        return super().parameter_formula(config) + vectors * config.head_dim + 2 * blocks + 1

    def cost(self) -> StreamCost:
        """RMT's, and D_k products with every entry of W.

        Saved are every token's dynamic part and its keys, and norm(X) once more for every W, whose product wants
        another layout. To undo a write its keys are kept, which grow with D_k.
        """
        cost = super().cost()
        assert cost.bytes_saved_writes is not None
        writes = len(self.readers) - 1
        maps = [self.get_parameter(name).numel() for name in self.own_roles if name.startswith("map_")]
        keys = 4 * self.key_dim * sum(maps) // self.value_dim
        rows = 4 * self.key_dim * self.value_dim * len(maps)
        return replace(
            cost,
            flops=cost.flops + 2 * self.key_dim * sum(maps),
            bytes_saved=cost.bytes_saved + 2 * keys + rows,
            bytes_saved_writes=cost.bytes_saved_writes + 4 * self.key_dim * self.rank * writes,
        )

    def dynamic(self, keys: str, normed: Tensor) -> Tensor:
        """The part s tanh(norm(X)_k . W^(h)) for every h and k: [B, T, R, K]."""
        with no_autocast(normed.device):
            return getattr(self, f"scale_{keys}") * torch.tanh(getattr(self, f"map_{keys}") @ normed)

    def write_embedding(self, state: None, token: Tensor, position: Tensor | None) -> DynamicState:
        """RMT's X_0, and its norm."""
        X = super().write_embedding(None, token, position)
        return DynamicState(X, self.norms[0](X))

    def write(self, site: int, state: DynamicState, written: Tensor) -> DynamicState:
        """X <- X + sum_h w^(h)(X) (x) y^(h)."""
        return self.write_keeping(site, state, written)[0]

    def write_keeping(self, site: int, state: DynamicState, written: Tensor) -> tuple[DynamicState, tuple[Tensor, ...]]:
        """The same, and the keys w^(h)(X) of every token [B, T, K, R]: the norm they come from is of the lost state."""
        keys = getattr(self, f"write_{site}") + self.dynamic(f"write_{site}", state.normed).mT
        X = state.X + self.store(keys, self.data(written))
        return DynamicState(X, self.norms[site](X)), (keys,)

    def undo(self, site: int, state: DynamicState, written: Tensor, kept: tuple[Tensor, ...]) -> DynamicState:
        """X - sum_h w^(h)(X) (x) y^(h), and its norm."""
        X = state.X - self.store(kept[0], self.data(written))
        return DynamicState(X, self.norms[site - 1](X))

    def read(self, site: int, state: DynamicState) -> dict[str, Tensor]:
        """y^(h) = r^(h)(X) . norm(X)."""
        keys = getattr(self, f"read_{site}") + self.dynamic(f"read_{site}", state.normed)
        return self.hand_over(site, self.retrieve(keys, state.normed))
