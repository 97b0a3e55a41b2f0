"""RMT with attention's dense projections back: the ablation that parts "no W_QKVO" from "a wider stream" (ours).

    u = concat_h( r^(h) . norm(X) ) in R^{R D_v}         one read for attention, as the MLP has
    y = W_O softmax(W_Q u, W_K u) W_V u                  the plain transformer's attention
    X <- X + sum_h w^(h) (x) y[h]                        y cut into R vectors

With `reads: qkv`, q, k and v have reads of their own, u_q, u_k, u_v, as in RMT, in front of W_Q, W_K, W_V.

What it changes: RMT makes two claims at once, that keys can stand in for attention's projections and that a wider
stream pays; with dense attention at the same D_k, only the second is left. What it costs: the plain transformer's
4 D^2 parameters per layer, which RMT saves, beside the keys.

RMT exactly: W_Q = W_K = W_V = W_O = I. With `reads: qkv` that is any RMT; with `reads: shared`, one whose q, k and v
have the same keys. Depth scaling acts on W_O and not on the keys behind it. It does not start as the plain transformer,
which it contains: D_k = R, r = w = I, where the norm over all of X is the plain one. A plain model that was trained is
thus widened without a change of what it computes: see convert/widen.py.

Evidence: none on RMT as such. `shared` is a static virtual width network, whose next-token loss falls by .020, .028 and
.035 at 2, 4 and 8 times the width (MoE-A0.8B, 500B tokens, arXiv 2511.11238), but for its carry.

Letters: as in rmt.py.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

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


class MatrixDenseStream(MatrixBase[MatrixDenseConfig]):
    """X [B, T, V, K]; attention gets what the MLP gets."""

    Config = MatrixDenseConfig
    examples = ({"key_dim": 16}, {"key_dim": 6, "reads": "qkv"})

    @classmethod
    def attention_parts(cls, config: ModelConfig) -> tuple[int, ...]:
        """R in front of all three projections, or R each, whose outputs may be fewer heads for k and v."""
        return () if cls.settings_of(config).reads == "shared" else 3 * (config.num_heads,)

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """RMT's matrix, in front of dense attention."""
        return replace(super().spec(config), attention="dense", papers=("2506.22696", "2511.11238"))

    def hand_over(self, site: int, data: Tensor) -> dict[str, Tensor]:
        """Vectors side by side, for attention as for the MLP; or so for each of q, k, v."""
        if self.settings.reads == "shared" or self.readers[site] != "attention":
            return {"x": data.flatten(2)}
        return {role: part.flatten(2) for role, part in zip("qkv", data.chunk(3, dim=-1), strict=True)}
