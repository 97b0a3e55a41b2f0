"""Delta attention residuals: attention over earlier outputs, added to the stream (Luo et al., arXiv 2605.18855).

    h_{l+1} = h_l + f_l(norm(h~_l))                                      the stream is a plain sum
    h~_l    = h_l + g_l sum_i alpha_{i->l} v_i                           (1) what block l gets
    alpha_{i->l} = softmax_i( w_l . RMSNorm_l(v_i) )                     (2)

The sources v_i are the embedding and the outputs of the blocks before l; with `group_size` S > 1 sums of S outputs each
(the paper's Delta Block), of a group once it is complete. The first block and the head get h itself.

Changes: as in attention residuals (`attn_res`) a block receives a choice of earlier outputs by the token, but beside
the stream, not in its place.
Costs: a query and a gain of the key norm for every reader that has a choice, 2 D (2 L - S) parameters, 2 D FLOPs per
source and read, and the history's traffic.
Start: without a gate (g = 1, as the authors train from scratch) w = 0, and all n sources count alike. At S = 1 their
mean is h / n, so that a block gets (1 + 1 / n) h: the plain model's up to a scale, which its norm takes out. It would
do so up to its eps only, so here (1) is multiplied by n / (n + 1); the function is the paper's where eps is negligible.
At S > 1 the outputs of a group that is not complete are in h alone, and the start is not plain. `gate: true` learns g_l
from zero with w at random, and starts plain for any S.
Evidence (the authors', FineWeb-Edu, 10,000 steps): perplexity of plain, S > 1 and S = 1 at 220M 38.71, 37.08, 36.83; at
533M 32.00, 31.16, 31.05; at 1044M 29.70, 29.19, 29.13; at 7.6B plain 17.43, and 16.00.
Paper and code (wdlctc/delta-attention-residuals-code) part where S > 1: the code's third source and later ones are the
stream less the source before, not less the stream at the end of the group before, and attention of a group's first
layer does not have the group before yet. Here they are the groups' sums, as in the paper. The code draws w for training
from scratch at the scale of all weights, and sets it to zero for fine-tuning. Its learned vector as one source more
("null source") does not start plain, as the others share the rest of the softmax; it is not here.

Letters: B batch, T tokens, D width, S blocks per group, l readers, i sources.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.roles import Role, Roles
from widestream.errors import UserError
from widestream.kernels.autocasting import no_autocast
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.depth_sums import token_sum
from widestream.streams.vector.plain import VectorBase


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaAttnResConfig(StreamConfig):
    """How finely the history is kept, and whether what is read from it passes a gate."""

    kind: Literal["delta_attn_res"] = "delta_attn_res"
    """This stream."""
    group_size: int = 1
    """[S] Attention and MLP blocks whose outputs are added up to one source; 1: every output is a source of its own."""
    gate: bool = False
    """A scalar per reader, from zero, on what is read of the history: the initial model is the plain one for any S."""

    def __post_init__(self):
        if self.group_size < 1:
            raise UserError(f"model.stream.group_size is {self.group_size}; it must be at least 1.")


class State(NamedTuple):
    """The stream, and what may be read beside it."""

    h: Tensor
    """[B, T, D]."""
    sources: tuple[Tensor, ...]
    """The embedding and complete groups, oldest first [B, T, D]."""
    inverse_rms: tuple[Tensor, ...]
    """1 / sqrt(mean v^2 + eps) of each [B, T, 1]: all that the key norm needs beside its gain."""
    group: Tensor | None
    """The sum of the group that is not complete yet [B, T, D]; None: it is empty."""


class DeltaAttnResStream(VectorBase[DeltaAttnResConfig]):
    """h [B, T, D] and a softmax over its parts, with a learned query per reader; norms as in the plain stream."""

    Config = DeltaAttnResConfig
    depth_settings = ("group_size",)
    limits = (
        "The authors compare with attention residuals over cumulated states, which lose to the plain model at 1B "
        "(31.76 against 29.70); that is not the form that attn_res is (2605.18855).",
    )
    examples = ({}, {"group_size": 2, "gate": True})

    queries: Tensor
    """w_l of readers S, ..., 2 L - 1, those with a choice [2 L - S, D]."""
    key_gains: Tensor
    """Gains of their key norms [2 L - S, D]."""
    gates: Tensor
    """g_l of readers 1, ..., 2 L - 1; only with `gate`."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        self.eps, self.num_blocks = config.norm_eps, len(self.readers) - 1
        self.first_choice = first_choice(self.settings, config)
        shape = (self.num_blocks - self.first_choice, self.width)
        # With closed gates the start is plain whatever the queries are; from zero they and their keys' gains would have
        # to wait for one another.
        query = replace(roles.hidden((roles.width,), (), "stream", decay="key"), muon=False)
        self.declare("queries", shape, query if self.settings.gate else replace(query, std=0.0))
        self.declare("key_gains", shape, Role(None, "none", part="stream"))
        if self.settings.gate:
            self.declare("gates", (self.num_blocks - 1,), Role(0.0, "key", part="stream"))

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D, and one per source."""
        settings, blocks = cls.settings_of(config), config.num_blocks
        size = settings.group_size
        complete = (blocks - 1) // size
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=settings.gate or size == 1,
            history="outputs of all blocks" if size == 1 else f"sums of the outputs of {size} blocks",
            history_size=(1 + complete + (size > 1)) * config.embed_dim,
            undo="replay",
            papers=("2605.18855", "https://github.com/wdlctc/delta-attention-residuals-code"),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """The plain stream's gains, and 2 D (2 L - S) of queries and key gains; 2 L - 1 gates."""
        settings, blocks = cls.settings_of(config), config.num_blocks
        own = 2 * config.embed_dim * (blocks - first_choice(settings, config)) + settings.gate * (blocks - 1)
        return super().parameter_formula(config) + own

    def cost(self) -> StreamCost:
        """A product over D per source and read. Saved: inputs of norms, sources, and what a gate acts on."""
        sites, vector, size = len(self.readers), 4 * self.width, self.settings.group_size
        readers = range(size, self.num_blocks)  # those with a choice; the others' only source is the embedding
        reads, sources = sum(1 + site // size for site in readers), (self.num_blocks - 1) // size
        gated = len(readers) if self.settings.gate else 0
        return StreamCost(
            flops=2 * self.width * reads,
            bytes_moved=vector * (2 * sites + reads),
            bytes_saved=vector * (sites + sources + gated) + 4 * (2 * reads + sources + 1),
            bytes_saved_writes=vector * sites + self._bytes_anchored(),
        )

    def _bytes_anchored(self) -> int:
        """Of all anchors: the stream, the sources' scales, and sums of several outputs; one alone was written."""
        size = self.settings.group_size
        complete = max(((site // size) for site in self.anchored), default=0)
        running = {site for site in self.anchored if site % size > 1}
        sums = len(self.anchored) + len(running) + (complete if size > 1 else 0)
        return 4 * (self.width * sums + (complete + 1 if self.anchored else 0))

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """Add to the stream, and to the history once a group is complete. What the head would not read is left out."""
        if state is None:
            return State(written, (written,), (self.inverse_rms(written),), None)
        h, sources, scales, group = state
        written = written.to(h.dtype)
        h = h + written
        if site == self.num_blocks:
            return State(h, (), (), None)
        group = written if group is None else group + written
        if site % self.settings.group_size == 0:
            sources, scales, group = (*sources, group), (*scales, self.inverse_rms(group)), None
        return State(h, sources, scales, group)

    def read(self, site: int, state: State) -> dict[str, Tensor]:
        """Eqs. 1 and 2, then the norm. w . (k * v / rms(v)) = ((w * k) . v) / rms(v) saves a copy of the history."""
        if site in (0, self.num_blocks):
            return super().read(site, state.h)
        chosen = state.sources[0] if site < self.first_choice else self._chosen(site - self.first_choice, state)
        if self.settings.gate:
            return super().read(site, state.h + self.gates[site - 1] * chosen)
        scale = len(state.sources) / (len(state.sources) + 1)
        return super().read(site, scale * (state.h + chosen))

    def _chosen(self, row: int, state: State) -> Tensor:
        key = (self.queries[row] * self.key_gains[row])[None]
        with no_autocast(key.device):
            scores = [F.linear(v, key) * scale for v, scale in zip(state.sources, state.inverse_rms, strict=True)]
        return token_sum(torch.cat(scores, dim=-1).softmax(-1), state.sources)  # weights [B, T, n]

    def inverse_rms(self, v: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, 1]."""
        return torch.rsqrt(v.square().mean(-1, keepdim=True) + self.eps)


def first_choice(settings: DeltaAttnResConfig, config: ModelConfig) -> int:
    """The first reader with more than one source: behind the first complete group.

    Raises:
        UserError: no reader has.
    """
    if settings.group_size >= config.num_blocks:
        raise UserError(
            f"model.stream.group_size is {settings.group_size}, and the model has {config.num_blocks} blocks: no block "
            f"would read a complete group; it may be at most {config.num_blocks - 1}."
        )
    return settings.group_size
