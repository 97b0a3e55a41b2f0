"""ELC-BERT's stream, for decoders (Charpentier & Samuel, arXiv 2311.02265, section 3): every layer reads a mean of all.

    x_l = sum_{j < l} softmax(a_l)_j h_j           (1) h_0 the embedding
    base      m = Attn(x_l),  h_l = m + MLP(m)     (2)
    others    m = Attn(x_l),  h_l = m + MLP(x_l + m)   (3)

Changes: the input of a layer is a learned convex mixture of all earlier outputs, the same for every token, and there is
no identity path around attention. Variants as published: `base` starts at a_l = (0, ..., 0, 1), a mean that leans to
the newest; `zero` starts at a_l = 0, with eq. 3; `normalised` is `zero` whose h_j are normalised, without gain;
`weighted_output` is `zero` whose head reads a mixture of h_0 ... h_L instead of h_L.
Costs: L (L + 1) / 2 - 1 scalars (L + 1 more with weighted_output), no matrix product; the outputs of up to L layers
stay in memory and are read again. The usual count, L (L + 1) / 2 (78 at 12 layers), has a_1 in it, which a softmax over
one source makes inert; it is left out here.
Does not start plain: a mean is not a sum, and attention's own input is dropped.
Evidence: an encoder; it won both text-only tracks of the BabyLM challenge 2023 (10M and 100M words). For decoders there
is none; here it stands for static weights under a softmax, without an identity.
The published model also normalises inside its blocks (behind attention, inside the MLP) and normalises the embedding;
the blocks here are those of every other stream, and only `normalised` normalises the embedding. As there, weight decay
leaves a_l alone.

Letters: B batch, T tokens, D width, l and j layers, L their number. With ShortSWA, m sums a layer's outputs so far.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from widestream.blocks.norm import Norm
from widestream.blocks.roles import Role, Roles
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.depth_sums import layer_ends, static_sum
from widestream.streams.vector.plain import VectorBase


@dataclass(frozen=True, kw_only=True, slots=True)
class ElcBertConfig(StreamConfig):
    """Which of the published variants."""

    kind: Literal["elc_bert"] = "elc_bert"
    """This stream."""
    variant: Literal["base", "zero", "normalised", "weighted_output"] = "base"
    """Start of the weights, the MLP's input, a norm on the sources, a mixture for the head: see the module."""


class State(NamedTuple):
    """What the next block reads, and what later mixtures and sums need."""

    x: Tensor
    """What the next block receives before its norm [B, T, D]."""
    layer: Tensor | None
    """m, the sum of what this layer's blocks have put out [B, T, D]; None at the start of a layer."""
    past: tuple[Tensor, ...]
    """h_0, h_1, ... [B, T, D], as long as a mixture is to come."""


class ElcBertStream(VectorBase[ElcBertConfig]):
    """Static convex mixtures of layer outputs; norms in front of reads as in the plain stream."""

    Config = ElcBertConfig
    examples = ({}, {"variant": "zero"}, {"variant": "normalised"}, {"variant": "weighted_output"})

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        self.layer_ends = layer_ends(self.blocks(config))
        self.mixtures = mixtures(self.settings, config.num_layers)
        for layer in self.mixtures:
            self.declare(f"a_{layer}", (layer,), Role(std=0.0, decay="none", part="stream"))
        self.source_norm = Norm(config, roles, (self.width,), has_gain=False)

    def initial_values(self) -> dict[str, Tensor]:
        """Base: a_l = (0, ..., 0, 1)."""
        if self.settings.variant != "base":
            return {}
        return {f"a_{layer}": torch.eye(layer)[-1] for layer in self.mixtures}

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D, and the outputs of earlier layers."""
        kept = max(mixtures(cls.settings_of(config), config.num_layers), default=1) - 1
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=False,
            history="outputs of all layers",
            history_size=kept * config.embed_dim,
            papers=("2311.02265",),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """The plain stream's gains, and L (L + 1) / 2 - 1 weights; with weighted_output L + 1 more."""
        L, mixed_head = config.num_layers, cls.settings_of(config).variant == "weighted_output"
        return super().parameter_formula(config) + L * (L + 1) // 2 - 1 + mixed_head * (L + 1)

    def cost(self) -> StreamCost:
        """No product. A mixture reads older sources, and writes the newest beside itself; a norm keeps its input."""
        plain, vector = super().cost(), 4 * self.width
        inside = 2 * (len(self.readers) - len(self.layer_ends)) if self.settings.variant != "base" else 0  # m beside x
        norms = len(self.layer_ends) if self.settings.variant == "normalised" else 0
        return StreamCost(
            flops=0,
            bytes_moved=plain.bytes_moved + vector * (sum(self.mixtures) + inside),
            bytes_saved=plain.bytes_saved + vector * (len(self.mixtures) + norms),
        )

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """Sum up a layer's outputs (eqs. 2, 3); at its end, mix (eq. 1)."""
        written = written.to(torch.promote_types(written.dtype, torch.float32))  # nothing is added that would widen it
        past = () if state is None else state.past
        m = written if state is None or state.layer is None else state.layer + written
        if site not in self.layer_ends:
            assert state is not None
            return State(m if self.settings.variant == "base" else state.x + written, m, past)
        h = self.source_norm(m) if self.settings.variant == "normalised" else m
        past, reader = (*past, h), self.layer_ends[site] + 1
        x = static_sum(getattr(self, f"a_{reader}").softmax(0), past) if reader in self.mixtures else h  # eq. 1
        return State(x, None, past if reader < max(self.mixtures, default=0) else ())

    def read(self, site: int, state: State) -> dict[str, Tensor]:
        """Normalise."""
        return super().read(site, state.x)


def mixtures(settings: ElcBertConfig, num_layers: int) -> list[int]:
    """The layers, from 1, that read a mixture, which is also over how many sources; the head counts as layer L + 1."""
    return list(range(2, num_layers + (2 if settings.variant == "weighted_output" else 1)))
