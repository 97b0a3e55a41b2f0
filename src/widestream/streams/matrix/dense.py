"""RMT with attention's dense projections back: the ablation that parts "no W_QKVO" from "a wider stream" (ours).

    u = concat_h( r^(h) . norm(X) ) in R^{R D_v}         one read for attention, as the MLP has
    y = W_O softmax(W_Q u, W_K u) W_V u                  the plain transformer's attention
    X <- X + sum_h w^(h) (x) y[h]                        y cut into R vectors

With `reads: qkv`, q, k and v have reads of their own, u_q, u_k, u_v, as in RMT, in front of W_Q, W_K, W_V.

What it changes: RMT makes two claims at once, that keys can stand in for attention's projections and that a wider
stream pays; with dense attention at the same D_k, only the second is left. What it costs: the plain transformer's
4 D^2 parameters per layer, which RMT saves, beside the keys.

RMT exactly: W_Q = W_K = W_V = W_O = I. With `reads: qkv` that is any RMT; with `reads: shared`, one whose q, k and v
have the same keys. Depth scaling acts on W_O and not on the keys behind it.

It contains the plain transformer: D_k = R, r = w = I, where the norm over all of X is the plain one. With
`start: plain` it starts there, at any D_k of at least R:

    w = [I; 0]    r = [sqrt(R / D_k) I, 0.02 n]    eps R / D_k

n normal, the factor only where a norm over all of X is in front. New rows hold nothing at first, and are read; what is
stored there is learned. Depth scaling acts on W_2 then, and keys are not decayed. A plain model that was trained is
widened likewise: see convert/widen.py.

Evidence: none on RMT as such. `shared` is a static virtual width network, whose next-token loss falls by .020, .028 and
.035 at 2, 4 and 8 times the width (MoE-A0.8B, 500B tokens, arXiv 2511.11238), but for its carry.

Letters: as in rmt.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from widestream.blocks.norm import Norm
from widestream.blocks.roles import Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.streams.base import StreamSpec
from widestream.streams.matrix.rmt import MatrixBase, WidenedFields


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixDenseConfig(WidenedFields):
    """RMT with dense attention projections."""

    kind: Literal["matrix_dense"] = "matrix_dense"
    """This stream."""
    reads: Literal["shared", "qkv"] = "shared"
    """Whether attention reads R vectors once, or R each for q, k and v."""
    start: Literal["random", "plain"] = "random"
    """plain: the initial model is the plain transformer (with norm: rmsnorm, or D_k = R)."""


NEW_KEYS = 0.02
"""Standard deviation of retrieval keys for rows that hold nothing yet."""


class MatrixDenseStream(MatrixBase[MatrixDenseConfig]):
    """X [B, T, V, K]; attention gets what the MLP gets."""

    Config = MatrixDenseConfig
    examples = (
        {"key_dim": 16},
        {"key_dim": 6, "reads": "qkv"},
        {"key_dim": 16, "start": "plain"},
        {"key_dim": 12, "start": "plain", "reads": "qkv"},
    )

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        self.plain = self.settings.start == "plain"
        if not self.plain:
            return
        if self.key_dim < self.rank:
            raise UserError(
                f"model.stream.start is plain, and key_dim {self.key_dim}: it must be at least {self.rank}, into as "
                "many parts a vector of the plain transformer is cut."
            )
        self.own_roles = {name: replace(role, decay="none") for name, role in self.own_roles.items()}

    @classmethod
    def eps_of(cls, config: ModelConfig) -> float:
        """See `MatrixBase`; of a state whose new rows are empty as much less as its mean square is."""
        settings, eps = cls.settings_of(config), super().eps_of(config)
        own = settings.norm_eps is not None or settings.start == "random"
        return eps if own else eps * config.num_heads / settings.key_dim

    def initial_values(self) -> dict[str, Tensor]:
        """With a plain start identity keys, and small random ones for rows that hold nothing yet."""
        if not self.plain:
            return {}
        generator = torch.Generator().manual_seed(0)
        values: dict[str, Tensor] = {}
        for name in self.own_roles:
            rows, columns = self.own_shapes[name]
            identity = torch.eye(self.rank)
            if name.startswith("write_"):
                values[name] = torch.cat([identity, torch.zeros(rows - self.rank, self.rank)])
                continue
            normed = isinstance(self.norms[int(name.removeprefix("read_"))], Norm)
            scale = math.sqrt(self.rank / self.key_dim) if normed else 1.0
            random = torch.randn(rows, columns - self.rank, generator=generator) * NEW_KEYS
            values[name] = torch.cat([scale * identity.repeat(rows // self.rank, 1), random], dim=1)
        return values

    def from_plain(self, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The plain norms' gains [D], cell by cell [V, K]; those of new rows are the mean of their column."""
        if plain and self.settings.norm_gain != "full":
            raise UserError(
                f"model.stream.norm_gain is {self.settings.norm_gain}, and the plain transformer has a gain for every "
                "number of its vectors; leave it out."
            )
        new, cells = self.key_dim - self.rank, (self.value_dim, self.rank)
        return {name: longer_gain(gain.view(cells), new) for name, gain in plain.items()}

    @classmethod
    def attention_parts(cls, config: ModelConfig) -> tuple[int, ...]:
        """R in front of all three projections, or R each, whose outputs may be fewer heads for k and v."""
        return () if cls.settings_of(config).reads == "shared" else 3 * (config.num_heads,)

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """RMT's matrix, in front of dense attention."""
        settings, spec = cls.settings_of(config), super().spec(config)
        plain = settings.start == "plain"
        return replace(
            spec,
            attention="dense",
            starts_plain=plain and (config.norm == "rmsnorm" or settings.key_dim == config.num_heads),
            scales_mlp_write=spec.scales_mlp_write and not plain,
            papers=("2506.22696", "2511.11238"),
        )

    def hand_over(self, site: int, data: Tensor) -> dict[str, Tensor]:
        """Vectors side by side, for attention as for the MLP; or so for each of q, k, v."""
        if self.settings.reads == "shared" or self.readers[site] != "attention":
            return {"x": data.flatten(2)}
        return {role: part.flatten(2) for role, part in zip("qkv", data.chunk(3, dim=-1), strict=True)}


def longer_gain(gain: Tensor, rows: int) -> Tensor:
    """Gains [..., K] of so many rows more, which have the mean of the others: [..., K + rows]."""
    return torch.cat([gain, gain.mean(-1, keepdim=True).expand(*gain.shape[:-1], rows)], dim=-1)
