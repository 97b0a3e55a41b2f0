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

Trimmed (`trim: m`), the form of the speedruns: only behind the last m layers there are sums, of two ways, values and
residual (q and k read the residual), over the embedding, the last layer but one in front of the m (of 11 layers, m = 2,
the eighth), and those from the first with sums on. Up to there it is one plain stream, and m + 1 vectors are kept, not
L. Evidence: 65 steps of 1,480 fewer to the same loss at m = 2 (10 runs each; KellerJordan/modded-nanogpt, pull request
259); with gates from the same map and other changes 60 of 1,385 (315). There the values' sum is added behind W_V, to
heads, W_1 sees x without a norm, and sums have a scale of .1; here all three are as in the paper.

Letters: B batch, T tokens, D width, L layers, C ways, n sources, K hidden numbers, F neurons, m trimmed layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.norm import read_norms, read_norms_size
from widestream.blocks.roles import Axis, Role, Roles
from widestream.errors import UserError
from widestream.kernels.autocasting import no_autocast
from widestream.kernels.norm_cpu import rms_norm
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import Block, StreamCost, StreamSpec
from widestream.streams.depth.multiway import MultiwayBase, State
from widestream.streams.depth_sums import token_sum

SPEEDRUN = "https://github.com/KellerJordan/modded-nanogpt/pull/259"
"""Where the trimmed form comes from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MuddConfig(StreamConfig):
    """Options of the published code."""

    kind: Literal["mudd"] = "mudd"
    """This stream."""
    round_hidden: bool = False
    """Raise K to the next multiple of 64."""
    widen_mlps: bool = False
    """MLPs with F/2 neurons in the first layer, 3 F/2 in the last, and evenly more in between."""
    trim: int = 0
    """[m] Sums behind the last m layers alone, of values and residual, over a few sources (speedruns: 2); 0: all."""

    def __post_init__(self):
        if self.trim < 0:
            raise UserError(f"model.stream.trim is {self.trim}; it must be at least 0 (nothing is trimmed).")


class MuddStream(MultiwayBase[MuddConfig]):
    """Weighted sums of all layer outputs for q, k, v and residual, with weights from the newest."""

    Config = MuddConfig
    depth_settings = ("trim",)
    limits = (
        "Of a small model of 11 layers the speedruns found all ways of all layers too dear; they use trim: 2 "
        "(KellerJordan/modded-nanogpt, pull request 259).",
    )
    examples = ({}, {"round_hidden": True}, {"widen_mlps": True}, {"trim": 2})

    def __init__(self, config: ModelConfig, roles: Roles):
        trim = self.settings_of(config).trim
        super().__init__(config, roles, separate=not trim)
        self.eps = config.norm_eps
        self.shapes = dense_shapes(self.settings, config.num_layers)
        self.first = min(self.shapes)
        """The first layer with sums behind it."""
        if trim:
            self.require_attention(site for site, layer in self.layer_starts.items() if layer > self.first)
            self.value_norms = read_norms(config, roles, ["attention"] * (trim - 1), (self.width,))
        for layer, (ways, sources, hidden) in self.shapes.items():
            w1 = roles.hidden((roles.width,), (Axis(hidden),), "stream", decay="key")
            self.declare(f"w1_{layer}", (hidden, self.width), replace(w1, muon=False))
            self.declare(f"w2_{layer}", (ways * sources, hidden), Role(0.0, "key", part="stream"))
            self.declare(f"b_{layer}", (ways, sources), Role(0.0, "none", part="stream"))

    def initial_values(self) -> dict[str, Tensor]:
        """b: the newest source, for every way."""
        return {f"b_{layer}": torch.eye(n)[-1].expand(c, n) for layer, (c, n, _) in self.shapes.items()}

    def from_plain(self, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Attention's norm, for values of their own too."""
        if not self.settings.trim:
            return super().from_plain(plain)
        copies = {
            f"value_norms.{layer - self.first - 1}.{part}": plain[f"norms.{site}.{part}"]
            for site, layer in self.layer_starts.items()
            for part in ("gain", "bias")
            if layer > self.first and f"norms.{site}.{part}" in plain
        }
        return {**plain, **copies}

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
        settings, last = cls.settings_of(config), config.num_layers - 1
        kept = dense_shapes(settings, config.num_layers)[last][1] - 1
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=not settings.widen_mlps or config.num_layers == 1,
            history="outputs of some layers" if settings.trim else "outputs of all layers",
            history_size=kept * config.embed_dim,
            papers=("2502.12170", *((SPEEDRUN,) if settings.trim else ())),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """(4 L + 1) D gains, and C n (K + 1) + D K per layer; trimmed (2 L + m) D gains, and m layers."""
        D, settings = config.embed_dim, cls.settings_of(config)
        dense = sum(c * n * (k + 1) + D * k for c, n, k in dense_shapes(settings, config.num_layers).values())
        norms = settings.trim - 1 if settings.trim else 2 * config.num_layers
        return read_norms_size(config, D, config.num_blocks + norms) + dense

    def cost(self) -> StreamCost:
        """Eq. 3 at the end of every layer with sums; eq. 2 reads n sources and writes C ways."""
        vector, shapes = 4 * self.width, self.shapes.values()
        plain = 2 * self.first  # blocks of layers without sums
        moved = 2 + 2 * plain + sum(2 + (n + 1 + c) for c, n, _ in shapes)
        # Inputs of all norms; the newest source and its norm at every layer's end.
        ways = {4: 3, 2: 2, 1: 1}
        saved = 1 + plain + sum(1 + 2 + ways[c] for c, _, _ in shapes)
        flops = sum(2 * k * (self.width + c * n) for c, n, k in shapes)
        inside = sum(2 * k + c * n for c, n, k in shapes)  # around the GELU of eq. 3, and A
        return StreamCost(flops=flops, bytes_moved=vector * moved, bytes_saved=vector * saved + 4 * inside)

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """Eq. 1 behind every block; at a layer's end also eq. 2."""
        if state is None:
            return State((written,), [written] * (1 if self.settings.trim else 4))
        x = state.ways[-1] + written
        layer = self.layer_ends.get(site)
        if layer is None:
            return State(state.past, [x])
        layer -= 1
        if layer < self.first:
            return State((*state.past, x) if layer == self.first - 2 else state.past, [x])
        past, A = (*state.past, x), self.weights(layer, x)
        return State(past, [token_sum(way, past) for way in A.unbind(-2)])

    def read(self, site: int, state: State) -> dict[str, Tensor]:
        """Normalise the ways; trimmed, queries and keys are made of the residual."""
        if not self.settings.trim or len(state.ways) == 1:
            return super().read(site, state)
        value, residual = state.ways
        x = self.norms[site](residual)
        return {"q": x, "k": x, "v": self.value_norms[self.layer_starts[site] - self.first - 1](value)}

    def weights(self, layer: int, x: Tensor) -> Tensor:
        """A of eq. 3 behind `layer`: newest source [B, T, D] -> [B, T, C, n]."""
        w1, w2, b = (getattr(self, f"{name}_{layer}") for name in ("w1", "w2", "b"))
        with no_autocast(x.device):
            hidden = F.gelu(F.linear(rms_norm(x, 1, None, self.eps), w1))
            return F.linear(hidden, w2).unflatten(-1, b.shape) + b


def dense_shapes(settings: MuddConfig, num_layers: int) -> dict[int, tuple[int, int, int]]:
    """(ways C, sources n, hidden K) behind every layer that has sums.

    Raises:
        UserError: more layers are trimmed than there are.
    """
    if settings.trim > num_layers:
        raise UserError(f"model.stream.trim is {settings.trim}; of {num_layers} layers it may be at most {num_layers}.")
    first = num_layers - settings.trim if settings.trim else 0
    # Trimmed: the embedding, the layer before the one in front, if there is one, and those from the first with sums on.
    before = 0 if not settings.trim else min(1, max(0, first - 1))
    shapes = {}
    for layer in range(first, num_layers):
        ways = 1 if layer == num_layers - 1 else (2 if settings.trim else 4)
        sources = 2 + before + layer - first
        hidden = sources * (ways if settings.trim and ways > 1 else 4)  # C n, or C n * 4 where C = 1
        shapes[layer] = ways, sources, 64 * (hidden // 64 + 1) if settings.round_hidden else hidden
    return shapes
