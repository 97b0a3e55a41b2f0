"""Hierarchical aggregation: a node merges every two layers and takes the stream's place (Dou et al., EMNLP 2018,
"Exploiting Deep Representations for Neural Machine Translation", arXiv 1810.10181).

    AGG(x_1, ..., x_m) = norm( W_b sigma(W_a [x_1 ; ... ; x_m]) + x_1 + ... + x_m )                (1)
    H^_1 = AGG(a, b);   H^_i = AGG(a, b, H^_{i-1})        a, b: the stream behind the two layers of pair i (2)

The layers themselves are plain. H^_i goes on as the stream, so its norm cuts the path from embedding to head, and it
does not start as the plain transformer. `identity` keeps that path and starts plain (ours): W_b starts at zero and

    AGG(a, b, ...) = b + W_b sigma(W_a [a ; b ; ...])                                               (3)

(a plain sum would count the stream three times). With an odd number of layers the last stays as it is. A node costs
(m + 1) D h parameters, two FLOPs for each, and keeps a and H^_{i-1} until it has used them.

Evidence: better translation than the plain stack (the authors, with h = F); at GPT2-small dimensions 3.47 against 3.43
of the plain transformer, with 165M parameters against 163M (RMT paper, Table 10, one run). The original sizes would
give 217M there; 165M are those of h = 128, the default, or of one node with h = D shared by all pairs (`share`).

Paper and code (hfxunlp/transformer, ResidueCombiner): the code has biases; here nothing has any. Which inputs a shared
node sees where there are two is written nowhere: here the first two blocks of its W_a.

Letters: D width, h hidden units of a node, m its inputs, 2 or 3.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widestream.blocks.norm import Norm, norm_size, read_norms, read_norms_size
from widestream.blocks.roles import Axis, Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import Stream, StreamCost, StreamSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class HierAggConfig(StreamConfig):
    """Size and form of the nodes."""

    kind: Literal["hier_agg"] = "hier_agg"
    """This stream."""
    hidden: int | None = None
    """[h] Hidden units of a node; default: 128, or the width D if the node is shared."""
    share: bool = False
    """One node for all pairs of layers."""
    identity: bool = False
    """Equation 3 in place of 1: the stream passes by the node, which starts at zero."""

    def __post_init__(self):
        if self.hidden is not None and self.hidden < 1:
            raise UserError(f"model.stream.hidden is {self.hidden}; it must be at least 1.")


class AggregationState(NamedTuple):
    """The stream, and what the next node needs beside it."""

    x: Tensor
    """The stream [B, T, D]."""
    first: Tensor | None = None
    """a: the stream behind the first layer of the pair, once it has passed."""
    node: Tensor | None = None
    """H^_{i-1}: what the last node put out."""


class HierAggStream(Stream[HierAggConfig]):
    """x [B, T, D], merged every two layers; one pre-norm in front of every block and of the head."""

    Config = HierAggConfig
    examples = ({}, {"share": True}, {"identity": True, "hidden": 24})

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        settings = self.settings
        self.width = config.embed_dim
        self.hidden, self.node_inputs = _hidden(settings, config), _node_inputs(config)
        self.layers = [block.layer for block in self.blocks(config)]
        width, hidden = (roles.width,), (Axis(self.hidden, self.hidden),)
        out = roles.hidden(hidden, width, "stream")
        out = replace(out, std=0.0) if settings.identity else out

        owned = [max(self.node_inputs)] if settings.share else self.node_inputs
        for index, inputs in enumerate(owned):
            into = roles.hidden((Axis(inputs), roles.width), hidden, "stream")
            self.declare(f"in_{index}", (self.hidden, inputs * self.width), into)
            self.declare(f"out_{index}", (self.width, self.hidden), out)
        self.node_norms = nn.ModuleList(Norm(config, roles, (self.width,)) for _ in owned if not settings.identity)
        self.norms = read_norms(config, roles, self.readers, (self.width,))

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D, and up to two earlier ones."""
        settings = cls.settings_of(config)
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=settings.identity,
            history="the first layer of a pair, and the last node",
            history_size=2 * config.embed_dim,
            undo="replay",
            papers=("1810.10181",),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """(m + 1) D h per node, 23 D h at 12 layers; D gains per node and per read."""
        settings = cls.settings_of(config)
        D, nodes = config.embed_dim, _node_inputs(config)
        owned = [max(nodes)] if settings.share else nodes
        weights = sum(inputs + 1 for inputs in owned) * D * _hidden(settings, config)
        of_nodes = 0 if settings.identity else len(owned) * norm_size(config, D)
        return weights + of_nodes + read_norms_size(config, D)

    def cost(self) -> StreamCost:
        """Two products per node, whose earlier inputs are read again; saved: inputs of norms, nodes and W_b."""
        state, nodes, inputs = 4 * self.width, len(self.node_inputs), sum(self.node_inputs)
        exchanges, normed = len(self.readers), 0 if self.settings.identity else nodes
        return StreamCost(
            flops=2 * (inputs + nodes) * self.width * self.hidden,
            bytes_moved=2 * state * exchanges + state * (inputs - nodes),
            bytes_saved=state * (exchanges + inputs + normed) + 4 * nodes * self.hidden,
            bytes_saved_writes=state * (exchanges + len(set().union(*map(self._states, self.anchored)))),
        )

    def _states(self, site: int) -> set[int]:
        """The sites that left something in the state behind `site`."""
        ends = [end for end in range(1, site + 1) if self.layers[end - 1] not in self.layers[end:]]
        ends = ends[: 2 * len(self.node_inputs)]
        first = ends[-1:] if len(ends) % 2 else []
        return {site, *first, *ends[1::2][-1:]}

    def write(self, site: int, state: AggregationState | None, written: Tensor) -> AggregationState:
        """Add; behind the first layer of a pair remember, behind the second merge."""
        if state is None:
            return AggregationState(written)
        x = state.x + written
        layer = self.layers[site - 1]
        pair = layer // 2
        if layer in self.layers[site:] or pair == len(self.node_inputs):
            return state._replace(x=x)
        if layer % 2 == 0:
            return state._replace(x=x, first=x)
        assert state.first is not None
        merged = self.aggregate(pair, [state.first, x] if state.node is None else [state.first, x, state.node])
        return AggregationState(x=merged, node=merged)

    def aggregate(self, pair: int, inputs: list[Tensor]) -> Tensor:
        """AGG of two or three tensors [B, T, D] -> [B, T, D], by the node of `pair`."""
        index = 0 if self.settings.share else pair
        into, out = getattr(self, f"in_{index}"), getattr(self, f"out_{index}")
        hidden = F.sigmoid(F.linear(torch.cat(inputs, dim=-1), into[:, : len(inputs) * self.width]))
        added = F.linear(hidden, out).to(inputs[0].dtype)
        if self.settings.identity:
            return inputs[1] + added  # eq. 3
        return self.node_norms[index](added + sum(inputs))  # eq. 1

    def read(self, site: int, state: AggregationState) -> dict[str, Tensor]:
        """Normalise."""
        return {"x": self.norms[site](state.x)}


def _hidden(settings: HierAggConfig, config: ModelConfig) -> int:
    return settings.hidden or (config.embed_dim if settings.share else 128)


def _node_inputs(config: ModelConfig) -> list[int]:
    """Inputs of every node, in order: 2, 3, 3, ..."""
    if config.num_layers < 2:
        raise UserError("A hier_agg stream merges pairs of layers; model.num_layers must be at least 2.")
    return [2 if pair == 0 else 3 for pair in range(config.num_layers // 2)]
