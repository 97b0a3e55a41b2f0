"""RMT with a data lane: the embedding enters a part of the key rows only, and the head may read a part only (ours).

    X_0[k] = sum_h w_E^(h)[k] W_E^(h) s   for rows k < lane,   0 for all others
    head:  first   y^(h) = r_U^(h) . norm(X)[:lane]          it comes out where it went in
           last    y^(h) = r_U^(h) . norm(X)[-lane:]         it comes out on the other side
           all     RMT's read

What it changes: the rows beyond the lane start empty, so they are free for what the blocks compute. RMT has such room
anyway: its embedding fills at most R of D_k dimensions of the key axis (2 R with learned positions), in a direction of
its own choosing. What it costs: fewer keys, (D_k - lane) R for each restricted set. The norm is over the whole state,
before the rows are chosen. Learned positions are stored in all rows, or in the lane with `positions: lane`.

RMT exactly: lane = key_dim. It does not start as the plain transformer.

Evidence: none on RMT. In a transformer of width 768 a narrow embedding, in and out on the same side or on opposite
ones, neither helped nor hurt at equal parameters (TinyStories, one run per point; chrissarmstrong.github.io), which
makes the comparison of `lane` with RMT's free keys the test of whether RMT's gain is lane capacity.

Letters: as in rmt.py.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.roles import Axis, Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.streams.base import StreamSpec
from widestream.streams.matrix.rmt import MatrixBase, MatrixFields


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixLaneConfig(MatrixFields):
    """RMT with a data lane."""

    kind: Literal["matrix_lane"] = "matrix_lane"
    """This stream."""
    lane: int
    """Rows of the key axis that the embedding is stored in; from 1 to key_dim."""
    head: Literal["all", "first", "last"] = "all"
    """Rows that the head reads: all, the lane, or as many at the other end."""
    positions: Literal["all", "lane"] = "all"
    """Rows that learned positions are stored in."""

    def __post_init__(self):
        MatrixFields.__post_init__(self)  # super() does not work in dataclasses with slots
        if not 1 <= self.lane <= self.key_dim:
            raise UserError(f"model.stream.lane is {self.lane}; it must be from 1 to key_dim, {self.key_dim}.")


class MatrixLaneStream(MatrixBase[MatrixLaneConfig]):
    """X [B, T, V, K]."""

    Config = MatrixLaneConfig
    examples = (
        {"key_dim": 16, "lane": 4},
        {"key_dim": 16, "lane": 4, "head": "first", "positions": "lane"},
        {"key_dim": 6, "lane": 4, "head": "last"},
    )

    def lane_axis(self) -> Axis:
        """The lane's rows; its base size for muP is the same part of the key axis'."""
        assert self.keys.base is not None
        return Axis(self.settings.lane, max(1, round(self.settings.lane * self.keys.base / self.keys.size)))

    def declare_storage(self, name: str, vectors: tuple[Axis, ...], roles: Roles, scaled: bool = False) -> None:
        """Storage keys; the embedding's are as long as the lane."""
        if name == "write_0" or (name == "write_position" and self.settings.positions == "lane"):
            role = roles.hidden(vectors, (self.lane_axis(),), "keys", decay="key", output=scaled)
            self.declare(name, (self.settings.lane, self.rank), role)
        else:
            super().declare_storage(name, vectors, roles, scaled)

    def declare_retrieval(self, site: int, vectors: tuple[Axis, ...], roles: Roles, zero_rows: int) -> None:
        """Retrieval keys; the head's are as long as the lane where it reads that many rows."""
        if self.readers[site] == "head" and self.settings.head != "all":
            role = roles.hidden((self.lane_axis(),), vectors, "keys", decay="key")
            self.declare(f"read_{site}", (self.rank, self.settings.lane), role)
        else:
            super().declare_retrieval(site, vectors, roles, zero_rows)

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """RMT's matrix."""
        return replace(super().spec(config), papers=("2506.22696", "https://chrissarmstrong.github.io"))

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """RMT's, less (D_k - lane) R for every restricted set of keys."""
        settings = cls.settings_of(config)
        sets = 1 + (settings.head != "all") + (settings.positions == "lane" and config.positions == "learned")
        return super().parameter_formula(config) - sets * (settings.key_dim - settings.lane) * config.num_heads

    def store(self, keys: Tensor, data: Tensor) -> Tensor:
        """As in RMT; what keys shorter than D_k do not reach stays zero."""
        stored = super().store(keys, data)
        missing = self.key_dim - keys.shape[-2]
        return F.pad(stored, (0, missing)) if missing else stored

    def retrieval_keys(self, site: int) -> Tensor:
        """Keys of full length: zero in the rows that the head leaves out."""
        keys = super().retrieval_keys(site)
        missing = self.key_dim - keys.shape[-1]
        return F.pad(keys, (missing, 0) if self.settings.head == "last" else (0, missing)) if missing else keys

    def read(self, site: int, state: Tensor) -> dict[str, Tensor]:
        """As in RMT; the head reads its rows."""
        if self.readers[site] != "head":
            return super().read(site, state)
        lane = self.settings.lane
        rows = {"all": slice(None), "first": slice(lane), "last": slice(-lane, None)}[self.settings.head]
        normed = self.norms[site](state)[..., rows]
        return self.hand_over(site, self.retrieve(getattr(self, f"read_{site}"), normed))
