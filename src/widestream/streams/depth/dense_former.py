"""DenseFormer's stream: weighted averages over the depth (Pagliardini et al., arXiv 2402.02622, section 3).

    X_0 = embedding,  Y_0 = X_0
    X_i = layer_i(Y_{i-1})                    (1) a plain residual stream runs inside the layer
    Y_i = sum_{j <= i, j = i mod k} alpha_ij X_j   (2) where i = 0 mod p; else Y_i = X_i

Changes: a layer reads a learned sum of what all earlier layers put out, with weights that are free (no softmax) and do
not depend on the tokens. k is the dilation, p the period.
Costs: L (L + 3) / 2 scalars at k = p = 1 (90 at 12 layers; 9 at 4x4), no matrix product, but the outputs of L + 1
layers stay in memory and are read again; only those that a later average needs are kept.
Starts plain: alpha_ii = 1 and all others 0.
Evidence: OpenWebText2, 48 layers, perplexity 18.61 -> 17.84 (1x1), 17.86 (4x1), 17.87 (4x5), a plain model of 72 layers
17.82; batches per second 5.94 -> 4.65, 5.31, 5.72. In the comparison of Attention Residuals (arXiv 2603.15031) it gains
nothing: 1.767 against 1.766.
Paper and published code (epfml/DenseFormer) agree; weights are stored oldest source first, as there. A layer may hold
more than two blocks; what counts is its end. The published training code decays the weights as it does matrices; that
pulls the stream itself towards zero, by 94 % in 50,000 steps at the RMT paper's settings, so here they are not decayed.

Letters: B batch, T tokens, D width, i and j layers, L their number.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from widestream.blocks.roles import Role, Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.depth_sums import layer_ends, static_sum
from widestream.streams.vector.plain import VectorBase


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseFormerConfig(StreamConfig):
    """Which layers are averaged, and where."""

    kind: Literal["dense_former"] = "dense_former"
    """This stream."""
    dilation: int = 1
    """[k] An average takes every k-th layer output, counted back from the newest."""
    period: int = 1
    """[p] There is an average behind every p-th layer."""

    def __post_init__(self):
        for name in ("dilation", "period"):
            if getattr(self, name) < 1:
                raise UserError(f"model.stream.{name} is {getattr(self, name)}; it must be at least 1.")


class State(NamedTuple):
    """The inner plain stream, and what the averages to come need."""

    x: Tensor
    """What the next block receives before its norm [B, T, D]."""
    past: tuple[Tensor, ...]
    """Layer outputs X_j [B, T, D], oldest first; of which layers, `kept_layers` says."""


class DenseFormerStream(VectorBase[DenseFormerConfig]):
    """A plain stream inside layers, averages over layer outputs between them; norms as in the plain stream."""

    Config = DenseFormerConfig
    depth_settings = ("dilation", "period")
    examples = ({}, {"dilation": 2}, {"dilation": 2, "period": 3}, {"dilation": 3, "period": 2})

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        self.num_layers = config.num_layers
        self.layer_ends = layer_ends(self.blocks(config))
        for layer, count in num_sources(self.settings, config.num_layers).items():
            self.declare(f"alpha_{layer}", (count,), Role(std=0.0, decay="none", part="stream"))

    def initial_values(self) -> dict[str, Tensor]:
        """alpha_i = (0, ..., 0, 1)."""
        return {name: torch.eye(len(weights))[-1] for name, weights in self.named_parameters(recurse=False)}

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D, and layer outputs for averages to come."""
        settings = cls.settings_of(config)
        kept = [kept_layers(settings, config.num_layers, layer) for layer in range(config.num_layers)]
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=True,
            history=f"layer outputs that an average needs (dilation {settings.dilation}, period {settings.period})",
            history_size=max(map(len, kept)) * config.embed_dim,
            papers=("2402.02622",),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """The plain stream's gains, and floor(i / k) + 1 weights for i = p, 2p, ...: L (L + 3) / 2 at k = p = 1."""
        sources = num_sources(cls.settings_of(config), config.num_layers)
        return super().parameter_formula(config) + sum(sources.values())

    def cost(self) -> StreamCost:
        """No product. An average reads its older sources, and writes the layer's output beside itself."""
        plain, vector = super().cost(), 4 * self.width
        counts = [weights.numel() for weights in self.parameters(recurse=False)]
        return StreamCost(
            flops=0,
            bytes_moved=plain.bytes_moved + vector * sum(counts),
            bytes_saved=plain.bytes_saved + vector * len(counts),
        )

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """Add, and average where a layer with an average ends."""
        x, past = (written, ()) if state is None else (state.x + written, state.past)  # eq. 1
        layer = self.layer_ends.get(site)
        if layer is None:
            return State(x, past)
        outputs = dict(zip(self._kept(layer - 1), past, strict=True)) | {layer: x}
        if layer and layer % self.settings.period == 0:
            alpha = getattr(self, f"alpha_{layer}")
            same = range(layer % self.settings.dilation, layer + 1, self.settings.dilation)
            x = static_sum(alpha, [outputs[j] for j in same])  # eq. 2
        return State(x, tuple(outputs[j] for j in self._kept(layer)))

    def read(self, site: int, state: State) -> dict[str, Tensor]:
        """Normalise."""
        return super().read(site, state.x)

    def _kept(self, layer: int) -> list[int]:
        return kept_layers(self.settings, self.num_layers, layer)


def num_sources(settings: DenseFormerConfig, num_layers: int) -> dict[int, int]:
    """The layers behind which there is an average, and over how many layer outputs it goes."""
    averaged = range(settings.period, num_layers + 1, settings.period)
    return {layer: layer // settings.dilation + 1 for layer in averaged}


def kept_layers(settings: DenseFormerConfig, num_layers: int, layer: int) -> list[int]:
    """The layers whose outputs a later average needs, once `layer` has ended; 0 is the embedding."""
    later = [i for i in num_sources(settings, num_layers) if i > layer]
    return [j for j in range(layer + 1) if any((i - j) % settings.dilation == 0 for i in later)]
