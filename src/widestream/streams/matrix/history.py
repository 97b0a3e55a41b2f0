"""RMT as a history of factored writes: what was written is kept, and every reader stores it anew (ours).

    X_i = sum_{j <= i} sum_h w_ij^(h) (x) y_j^(h)          the matrix that the reader at site i sees
    y^(h) = r_i^(h) . norm(X_i)                            read as in RMT
    w_jj = w_j,   w_ij = w_j + d_ij for i > j              y_j: the R vectors of width D_v written at site j

The state is not X but the vectors y_j themselves: D = R D_v numbers per write and not D_k D_v. X_i is built at every
read and then forgotten. The embedding's token and position vectors are two sources of site 0.

What it changes: a reader may see earlier writes under other addresses than the readers before it. What it costs:
D_k R parameters per pair of site and earlier source, quadratic in depth; so are the products, 2 D_k R D_v each. It
keeps (2 L + 1) D numbers instead of D_k D_v.

RMT exactly: d = 0, where it starts. X_i is then RMT's X_i, so the joint norm sees the same statistics. Mixing what was
retrieved, without a matrix in between, would have no such norm. Weight decay pulls towards RMT. It does not start as
the plain transformer.

Evidence: none on RMT. Histories of whole vectors: DenseFormer, 48 blocks, 18.61 -> 17.84 perplexity with static
weights (arXiv 2402.02622); Attention Residuals, where static weights give 1.749 against 1.766 (2603.15031).

Letters: as in rmt.py; S the number of blocks.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from widestream.blocks.roles import Roles
from widestream.recipe.model import ModelConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.matrix.rmt import MatrixBase, MatrixFields

History = tuple[Tensor, ...]
"""Data vectors of every write so far [B, T, V, R]; site 0 has 2 R of them if positions are learned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixHistoryConfig(MatrixFields):
    """RMT with a history of factored writes."""

    kind: Literal["matrix_history"] = "matrix_history"
    """This stream."""


class MatrixHistoryStream(MatrixBase[MatrixHistoryConfig]):
    """A tuple of data vectors; X [B, T, V, K] exists only while it is read."""

    Config = MatrixHistoryConfig
    examples = ({"key_dim": 16}, {"key_dim": 6, "norm_gain": "row", "depth_scale_site": "W2"})

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        self.learned_positions = config.positions == "learned"
        role = replace(roles.hidden((roles.heads,), (self.keys,), "keys", decay="key"), std=0.0)
        for site in range(1, len(self.readers)):
            columns = self.rank * (site + self.learned_positions)
            self.declare(f"rekey_{site}", (self.key_dim, columns), role)  # d_ij side by side, j from 0

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """RMT's matrix at every read, out of S + 1 writes of width D."""
        return replace(
            super().spec(config),
            history="every write, as R vectors of width D_v",
            history_size=(config.num_blocks + 1) * config.embed_dim,
            undo="steps",
            papers=("2506.22696", "2402.02622", "2603.15031"),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """RMT's, and D_k R for each of the S (S + 1) / 2 pairs of a reader and an earlier write, S blocks.

        Learned positions are one more source for each of S readers.
        """
        writes = config.num_blocks
        pairs = writes * (writes + 1) // 2 + (writes if config.positions == "learned" else 0)
        return super().parameter_formula(config) + cls.settings_of(config).key_dim * config.num_heads * pairs

    def cost(self) -> StreamCost:
        """Every reader stores every write anew: RMT's keys w_j as often as there are readers from site j on."""
        sites = len(self.readers)
        pairs = sites * (sites + 1) // 2 + sites * self.learned_positions
        retrieval = sum(self.get_parameter(f"read_{site}").numel() for site in range(sites))
        width, state = 4 * self.rank * self.value_dim, 4 * self.key_dim * self.value_dim
        return StreamCost(
            flops=2 * self.value_dim * (pairs * self.key_dim * self.rank + retrieval),
            bytes_moved=width * (pairs + sites) + 2 * state * sites,
            bytes_saved=width * sites + (3 if self.row_gain else 2) * state * sites,
            bytes_saved_writes=width * sites,
        )

    def write_embedding(self, state: None, token: Tensor, position: Tensor | None) -> History:
        """y_0: token vectors, and position vectors beside them."""
        data = self.data(token)
        if position is None:
            return (data,)
        return (torch.cat((data, self.data(position).expand_as(data)), dim=-1),)

    def write(self, site: int, state: History, written: Tensor) -> History:
        """Append y_j, laid out once as every reader's product wants it."""
        return (*state, self.data(written).contiguous())

    def keys_of(self, source: int) -> Tensor:
        """w_j [K, R]; for the embedding with learned positions [K, 2 R]."""
        keys = getattr(self, f"write_{source}")
        return torch.cat((keys, self.write_position), dim=1) if source == 0 and self.learned_positions else keys

    def matrix(self, site: int, state: History) -> Tensor:
        """X_i."""
        X, end = self.store(self.keys_of(site), state[site]), 0
        for source, data in enumerate(state[:site]):
            start, end = end, end + data.shape[-1]
            X = X + self.store(self.keys_of(source) + getattr(self, f"rekey_{site}")[:, start:end], data)
        return X

    def read(self, site: int, state: History) -> dict[str, Tensor]:
        """RMT's read of X_i."""
        return super().read(site, self.matrix(site, state))

    def undo(self, site: int, state: History, written: Tensor, kept: tuple[Tensor, ...]) -> History:
        """Forget y_j; what grows with D_k was never kept."""
        return state[:-1]
