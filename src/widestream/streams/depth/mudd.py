"""MUDDFormer: multiway dynamic dense connections (Xiao et al., arXiv 2502.12170, ICML 2025).

    X_{l+1} = X^R + attention(X^Q, X^K, X^V) + MLP(X^R + attention)     layer l = 0, ..., L - 1; norms left out     (1)
    X^c     = sum_{j <= l+1} A^c_j(X_{l+1}) X_j                         c = Q, K, V, R; X_0 is the embedding        (2)
    A(x)    = GELU(RMSNorm(x) W_1) W_2 + b                              one number per way c and source j           (3)

Changes: attention's queries, keys and values and the residual are four different sums of all layer outputs, whose
weights every token computes from the newest; q, k and v have a pre-norm each. Behind the last layer C = 1 way, the
head's.
Costs: with n = l + 2 sources, C n (K + 1) + D K parameters per layer, K = C n (behind the last layer 4 n): 287,861 at
GPT2-small, and 610,689 with K rounded up, 2 (D K + K C n) FLOPs, beside 2 L D gains of the pre-norms; outputs of all
L + 1 layers stay in memory. The authors say + .23 % parameters and + .4 % FLOPs at 2.8B, 84 to 96 % of the training
throughput at 1 to 3B, and 17 to 29 % more memory.
Starts as the plain transformer: W_2 = 0, and b takes the newest source for every way.
Evidence: 2.8B on the Pile, perplexity 6.29, equal to Pythia-6.9B; 1.8 to 2.4 times less compute.
Where paper and published code part: the code (PyTorch) has a scale-free RMSNorm in (3), the exact GELU, K = 4 n behind
the last layer, and can round K to the next multiple of 64, a full one being raised too; all of that is done here, the
rounding and the MLP widths F (l / (L - 1) + 1/2) of the paper as options (to the nearest integer; a single layer keeps
F). The JAX code's variant with normalised history and post-norm is left out. Both compute (2) as a product of matrices;
here it is a sum of scaled vectors, and counts no FLOPs.

Letters: B batch, T tokens, D width, L layers, C ways, n sources, K hidden numbers, F neurons.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.norm import read_norms_size
from widestream.blocks.roles import Axis, Role, Roles
from widestream.kernels.norm_cpu import rms_norm
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import Block, StreamCost, StreamSpec
from widestream.streams.depth.multiway import MultiwayBase, State
from widestream.streams.depth_sums import token_sum


@dataclass(frozen=True, kw_only=True, slots=True)
class MuddConfig(StreamConfig):
    """Options of the published code."""

    kind: Literal["mudd"] = "mudd"
    """This stream."""
    round_hidden: bool = False
    """Raise K to the next multiple of 64."""
    widen_mlps: bool = False
    """MLPs with F/2 neurons in the first layer, 3 F/2 in the last, and evenly more in between."""


class MuddStream(MultiwayBase[MuddConfig]):
    """Weighted sums of all layer outputs for q, k, v and residual, with weights from the newest."""

    Config = MuddConfig
    examples = ({}, {"round_hidden": True}, {"widen_mlps": True})

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles, separate=True)
        self.eps = config.norm_eps
        self.shapes = dense_shapes(self.settings, config.num_layers)
        for layer, (ways, sources, hidden) in enumerate(self.shapes):
            w1 = roles.hidden((roles.width,), (Axis(hidden),), "stream", decay="key")
            self.declare(f"w1_{layer}", (hidden, self.width), replace(w1, muon=False))
            self.declare(f"w2_{layer}", (ways * sources, hidden), Role(0.0, "key", part="stream"))
            self.declare(f"b_{layer}", (ways, sources), Role(0.0, "none", part="stream"))

    def initial_values(self) -> dict[str, Tensor]:
        """b: the newest source, for every way."""
        return {f"b_{layer}": torch.eye(n)[-1].expand(c, n) for layer, (c, n, _) in enumerate(self.shapes)}

    @classmethod
    def blocks(cls, config: ModelConfig) -> list[Block]:
        """Attention and MLP in turn, the MLPs as wide as the options say."""
        settings = cls.settings_of(config)
        cls.require_pairs(config)
        blocks, last = super().blocks(config), config.num_layers - 1
        if not settings.widen_mlps or not last:
            return blocks
        widths = [round(config.mlp_dim * (layer / last + 0.5)) for layer in range(last + 1)]
        return [replace(b, num_neurons=widths[b.layer]) if b.kind == "mlp" else b for b in blocks]

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D per layer, and one for the embedding."""
        settings = cls.settings_of(config)
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=not settings.widen_mlps or config.num_layers == 1,
            history="outputs of all layers",
            history_size=config.num_layers * config.embed_dim,
            papers=("2502.12170",),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """(4 L + 1) D gains, and C n (K + 1) + D K per layer."""
        D, settings = config.embed_dim, cls.settings_of(config)
        dense = sum(c * n * (k + 1) + D * k for c, n, k in dense_shapes(settings, config.num_layers))
        return read_norms_size(config, D, config.num_blocks + 2 * config.num_layers) + dense

    def cost(self) -> StreamCost:
        """Eq. 3 at the end of every layer; eq. 2 reads n sources and writes C ways."""
        vector = 4 * self.width
        moved = 2 + sum(2 + (n + 1 + c) for c, n, _ in self.shapes)
        # Inputs of all norms; the newest source and its norm at every layer's end.
        saved = 1 + sum(1 + 2 + (3 if c > 1 else 1) for c, _, _ in self.shapes)
        flops = sum(2 * k * (self.width + c * n) for c, n, k in self.shapes)
        inside = sum(2 * k + c * n for c, n, k in self.shapes)  # around the GELU of eq. 3, and A
        return StreamCost(flops=flops, bytes_moved=vector * moved, bytes_saved=vector * saved + 4 * inside)

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """Eq. 1 behind every block; at a layer's end also eq. 2."""
        if state is None:
            return State((written,), [written] * 4)
        x = state.ways[-1] + written
        layer = self.layer_ends.get(site)
        if layer is None:
            return State(state.past, [x])
        past, A = (*state.past, x), self.weights(layer - 1, x)
        return State(past, [token_sum(way, past) for way in A.unbind(-2)])

    def weights(self, layer: int, x: Tensor) -> Tensor:
        """A of eq. 3 behind `layer`: newest source [B, T, D] -> [B, T, C, n]."""
        w1, w2, b = (getattr(self, f"{name}_{layer}") for name in ("w1", "w2", "b"))
        with torch.autocast(x.device.type, enabled=False):
            hidden = F.gelu(F.linear(rms_norm(x, 1, None, self.eps), w1))
            return F.linear(hidden, w2).unflatten(-1, b.shape) + b


def dense_shapes(settings: MuddConfig, num_layers: int) -> list[tuple[int, int, int]]:
    """(ways C, sources n, hidden K) behind every layer."""
    shapes = []
    for layer in range(num_layers):
        ways, sources = (1 if layer == num_layers - 1 else 4), layer + 2
        hidden = 4 * sources  # C n, or C n * 4 where C = 1
        shapes.append((ways, sources, 64 * (hidden // 64 + 1) if settings.round_hidden else hidden))
    return shapes
