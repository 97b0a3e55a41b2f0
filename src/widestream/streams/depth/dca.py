"""DeepCrossAttention and generalised residual networks (Heddes et al., arXiv 2502.06785, ICML 2025).

    x_l = sum_{j <= l} c_{lj} * f_j           f_0 is the embedding, f_j = attention + MLP of layer j          (1)
    v1   c_{lj} = b_{lj}                      in R: G b                                                       (2)
    v2   c_{lj} = b_{lj}                      in R^D: (G * b) 1                                               (3)
    v3   c_{lj} = b_{lj} + ReLU(w_l . f_j)    in R^D: (G * (b + 1 ReLU(w^T G))) 1                             (4)
    dca  four sums of kind v3 per layer: q, k and v, with a pre-norm each, and the residual that attention's output is
         added to; f_j = the layer's output without that residual                                             (5)

Changes: what a layer (and the head) receives is a learned sum of all earlier layers' outputs instead of the plain one;
in v3 a source's own content raises its weight. v1 to v3 make one sum per layer, for q, k, v and residual alike. k-DCA
(`recent`: k) keeps the embedding, the k newest outputs and the sum of those between as its sources.
Costs: with n sources, D (n + 1) parameters per sum of kind v3: 287,232 for dca at GPT2-small, beside 2 L D gains of the
pre-norms, and 2 D FLOPs per source and sum. All L + 1 outputs stay in memory, or k + 2 of them.
Starts as the plain transformer: b = 1, w = 0. A gradient of 0 for ReLU at 0, as is usual, would never let w leave zero;
here it is 1.
Evidence: LM1B, 24 layers, perplexity 15.14 -> 14.41 (2-DCA) at 8.14 -> 5.39 steps per second, the plain model's quality
in a third of its time. 6 layers: plain 18.98, LAuReL-PA 18.99, DenseFormer 18.80, hyper-connections 18.65, v1 18.80,
v2 18.43, v3 18.41, DCA 18.06. C4, 449M: 17.166 -> 16.764.
There is no published code. Open in the paper's text, and chosen here: the history is one of layers; the head reads
through one sum of its own; the sum in front of the first layer is there although its only source is the embedding.

Letters: B batch, T tokens, D width, L layers, C ways, n sources.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.norm import read_norms_size
from widestream.blocks.roles import Role, Roles
from widestream.errors import UserError
from widestream.kernels.autocasting import no_autocast
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import Block, StreamCost, StreamSpec
from widestream.streams.depth.multiway import MultiwayBase, State


@dataclass(frozen=True, kw_only=True, slots=True)
class DcaConfig(StreamConfig):
    """The form, and how much of the history is kept."""

    kind: Literal["dca"] = "dca"
    """This stream."""
    form: Literal["dca", "v3", "v2", "v1"] = "dca"
    """dca: separate sums for q, k, v and residual; v1, v2, v3: generalised residual networks, one sum per layer."""
    recent: int | None = None
    """[k] Newest layer outputs that stay sources of their own; default: all."""

    def __post_init__(self):
        if self.recent is not None and self.recent < 1:
            raise UserError(f"model.stream.recent is {self.recent}; it must be at least 1, or left out.")


class DcaStream(MultiwayBase[DcaConfig]):
    """Sums of all layer outputs with weights per coordinate, for q, k, v and residual."""

    Config = DcaConfig
    depth_settings = ("recent",)
    examples = ({}, {"recent": 1}, {"form": "v3", "recent": 2}, {"form": "v3"}, {"form": "v2"}, {"form": "v1"})

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles, separate=self.settings_of(config).form == "dca")
        form = self.settings.form
        self.shapes = sum_shapes(self.settings, config.num_layers)
        # A product over the width: its learning rate falls as the width grows.
        lr_factor = (roles.width.base or self.width) / self.width
        for layer, (ways, sources) in enumerate(self.shapes):
            shape = (ways, sources) if form == "v1" else (ways, sources, self.width)
            self.declare(f"b_{layer}", shape, Role(None, "none", part="stream"))
            if form in ("v3", "dca"):
                role = Role(0.0, "key", lr_factor=lr_factor, part="stream")
                self.declare(f"w_{layer}", (ways, self.width), role)

    @classmethod
    def blocks(cls, config: ModelConfig) -> list[Block]:
        """Attention and MLP in turn."""
        cls.require_pairs(config)
        return super().blocks(config)

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D per source."""
        settings = cls.settings_of(config)
        some = f"embedding, {settings.recent} newest layer outputs, sum of the others"
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=True,
            history="outputs of all layers" if settings.recent is None else some,
            history_size=(sum_shapes(settings, config.num_layers)[-1][1] - 1) * config.embed_dim,
            papers=("2502.06785",),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """(2 L + 1) D gains (dca: 4 L + 1), and per sum n (v1), D n (v2) or D (n + 1)."""
        settings = cls.settings_of(config)
        D, L = config.embed_dim, config.num_layers
        gains = read_norms_size(config, D, config.num_blocks + (2 * L if settings.form == "dca" else 0))
        each = {"v1": lambda n: n, "v2": lambda n: D * n, "v3": lambda n: D * (n + 1), "dca": lambda n: D * (n + 1)}
        return gains + sum(c * each[settings.form](n) for c, n in sum_shapes(settings, L))

    def cost(self) -> StreamCost:
        """Products w . f for every source and sum; a layer's sums read n sources and write C ways, once each."""
        vector = 4 * self.width
        moved = sum(n + 1 + c for c, n in self.shapes) + 4 * (len(self.shapes) - 1)  # residual and f behind attention
        # The newest source, the inputs of all norms, and the sums of older sources.
        saved = sum(1 + (3 if c > 1 else 1) for c, _ in self.shapes) + len(self.shapes) - 1
        saved += 0 if self.settings.recent is None else max(0, len(self.shapes) - self.settings.recent - 2)
        products = sum(c * n for c, n in self.shapes) if self.settings.form in ("v3", "dca") else 0
        return StreamCost(flops=2 * self.width * products, bytes_moved=vector * moved, bytes_saved=vector * saved)

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """The layer's f grows behind every block; at its end come the sums of the next layer."""
        if state is None:
            return State((written,), self.sums(0, (written,)))
        past, written = state.past, written.to(state.past[0].dtype)
        past = (*past, written) if site - 1 in self.layer_starts else (*past[:-1], past[-1] + written)
        layer = self.layer_ends.get(site)
        if layer is None:
            return State(past, [state.ways[-1] + written])
        if self.settings.recent is not None and len(past) > self.settings.recent + 2:
            past = (past[0], past[1] + past[2], *past[3:])
        return State(past, self.sums(layer, past))

    def sums(self, layer: int, past: tuple[Tensor, ...]) -> list[Tensor]:
        """Eqs. 1 to 4: sources n times [B, T, D] -> C ways [B, T, D].

        b and the gate act in terms of their own: their sum would be a weight per source, token and coordinate that
        autograd keeps.
        """
        b, gates = getattr(self, f"b_{layer}"), self.gates(layer, past)
        ways = []
        for c, weights in enumerate(b.unbind()):
            way = torch.zeros_like(past[0])
            for j, f in enumerate(past):
                way = torch.addcmul(way, f, weights[j])
                if gates is not None:
                    way = torch.addcmul(way, f, gates[j][..., c : c + 1])
            ways.append(way)
        return ways

    def gates(self, layer: int, past: tuple[Tensor, ...]) -> list[Tensor] | None:
        """ReLU(w . f) for every source [B, T, C] (eq. 4); None in forms without it."""
        if self.settings.form not in ("v3", "dca"):
            return None
        w = getattr(self, f"w_{layer}")
        with no_autocast(w.device):
            return [F.linear(f, w).clamp(min=0) for f in past]  # clamp's gradient at 0 is 1


def sum_shapes(settings: DcaConfig, num_layers: int) -> list[tuple[int, int]]:
    """(ways C, sources n) in front of every layer and, last, of the head."""
    most = num_layers + 1 if settings.recent is None else settings.recent + 2
    sources = [min(layer + 1, most) for layer in range(num_layers + 1)]
    ways = 4 if settings.form == "dca" else 1
    return [*((ways, n) for n in sources[:-1]), (1, sources[-1])]
