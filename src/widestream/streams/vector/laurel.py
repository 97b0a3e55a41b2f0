"""LAuReL's stream: a learned augmented residual (Menghani, Kumar & Kumar, arXiv 2411.07501, section 2).

    x_{i+1} = alpha f(x_i) + beta x_i + B A (x_i + sum_{j=1..k} gamma_j x_{i-j})
              `------- RW -------'      `- LR -'   `---------- PA ----------'

Changes: the plain sum is weighted by two scalars (RW, residual weights), gets a low-rank map of the state (LR), and of
the k states before it (PA, previous activations); any of the three may be left out. f contains its norm.
Costs: 2 scalars a block (48 at 12 layers); 2 r D for A and B (1.18M at r = 32, 12 layers, D = 768) and 4 r D FLOPs a
token; at most k gammas a block, and k states in memory.
Starts plain: alpha = beta = 1, B = 0 (our choice; the paper's initial values are not known to us), gamma = 1/k.
Evidence: language models of 1B and 4B, 0.5T tokens, 0.01 to 0.1 % more parameters, better on most of the paper's tasks;
ResNet-50 on ImageNet 74.95 -> 75.10 (RW), 75.20 (RW + LR), 75.25 (all three).
Ambiguities: LR and PA share A and B; the low-rank term is added to beta x, not multiplied by it; a block is attention
or MLP (the paper: any function with a residual). Under softmax alpha and beta are twice their softmax, so that both
start at one: with the paper's sum of one, the state would halve with every block. The first blocks have fewer than k
earlier states, so fewer gammas. Weight decay leaves alpha, beta and gamma alone: towards zero it would take the stream
away, by 94 % in 50,000 steps at the RMT paper's settings (the softmax's logits it pulls to their start, zero).

Letters: B batch (B also names the map, as in the paper), T tokens, D width, r rank, i blocks.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.roles import Axis, Role, Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.depth_sums import static_sum
from widestream.streams.vector.plain import VectorBase


@dataclass(frozen=True, kw_only=True, slots=True)
class LaurelConfig(StreamConfig):
    """Which of RW, LR and PA; at least one."""

    kind: Literal["laurel"] = "laurel"
    """This stream."""
    weights: Literal["none", "free", "softmax"] = "free"
    """RW: weights of block output and state, free or twice a softmax; none: both are one."""
    low_rank: bool = True
    """LR: the low-rank map of the state."""
    previous: int = 0
    """[k] PA: how many earlier states the low-rank map sees; 0: none."""
    rank: int = 32
    """[r] Rank of B A, for LR and PA."""

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"model.stream.rank is {self.rank}; it must be at least 1.")
        if self.previous < 0:
            raise UserError(f"model.stream.previous is {self.previous}; it must be at least 0.")
        if self.weights == "none" and not self.low_rank and not self.previous:
            raise UserError(
                "A laurel stream without weights, low_rank and previous is the plain one; use kind: vector."
            )


class State(NamedTuple):
    """The stream, and what it was before."""

    x: Tensor
    """[B, T, D]."""
    past: tuple[Tensor, ...]
    """The last k states before x, newest first."""


class LaurelStream(VectorBase[LaurelConfig]):
    """x [B, T, D] with a weighted, low-rank or backward-looking residual; norms as in the plain stream."""

    Config = LaurelConfig
    depth_settings = ("previous",)
    examples = (
        {},
        {"low_rank": False},
        {"weights": "softmax", "low_rank": False},
        {"weights": "none", "rank": 4},
        {"weights": "none", "low_rank": False, "previous": 2, "rank": 4},
        {"weights": "softmax", "previous": 3, "rank": 4},
    )

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        settings = self.settings
        self.num_blocks = len(self.readers) - 1
        if settings.weights != "none":
            free, zero = Role(None, "none", part="stream"), Role(0.0, "key", part="stream")
            role = free if settings.weights == "free" else zero
            self.declare("alpha", (self.num_blocks,), role)
            self.declare("beta", (self.num_blocks,), role)
        ranks = Axis(settings.rank)
        down = roles.hidden((roles.width,), (ranks,), "stream", decay="key")
        up = replace(roles.hidden((ranks,), (roles.width,), "stream", decay="key"), std=0.0)
        for site in range(1, self.num_blocks + 1):
            if self._has_map(site):
                self.declare(f"A_{site}", (settings.rank, self.width), down)
                self.declare(f"B_{site}", (self.width, settings.rank), up)
            if count := self._num_past(site):
                self.declare(f"gamma_{site}", (count,), Role(std=0.0, decay="none", part="stream"))

    def initial_values(self) -> dict[str, Tensor]:
        """gamma: the mean of the earlier states."""
        counts = {site: self._num_past(site) for site in range(1, self.num_blocks + 1)}
        return {f"gamma_{site}": torch.full((count,), 1 / count) for site, count in counts.items() if count}

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D, and k earlier ones."""
        settings = cls.settings_of(config)
        kept = min(settings.previous, len(cls.blocks(config)) - 1)
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=True,
            history=f"the last {settings.previous} states" if kept else "none",
            history_size=kept * config.embed_dim,
            # Where blocks' outputs are only added, what autograd keeps is no more than they are.
            undo="no" if settings.weights == "none" else "replay",
            papers=("2411.07501",),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """The plain stream's gains; for S blocks 2 S weights, 2 r D S map entries, sum_i min(k, i - 1) gammas.

        With PA alone, the first block has no map.
        """
        settings = cls.settings_of(config)
        S = len(cls.blocks(config))
        maps = S if settings.low_rank else (S - 1 if settings.previous else 0)
        gammas = sum(min(settings.previous, i - 1) for i in range(1, S + 1))
        extra = 2 * S * (settings.weights != "none") + 2 * settings.rank * config.embed_dim * maps + gammas
        return super().parameter_formula(config) + extra

    def cost(self) -> StreamCost:
        """4 r D FLOPs a map, which keeps its r numbers; RW keeps the block's output, PA the sum of earlier states."""
        plain, sites = super().cost(), range(1, self.num_blocks + 1)
        maps, reads = sum(map(self._has_map, sites)), sum(map(self._num_past, sites))
        sums = sum(self._num_past(site) > 0 for site in sites)
        outputs = self.num_blocks if self.settings.weights != "none" else 0
        anchors = {site - k for site in self.anchored for k in range(self._num_past(site) + 1)}  # x_0 is written
        return StreamCost(
            flops=4 * self.settings.rank * self.width * maps,
            bytes_moved=plain.bytes_moved + 4 * self.width * reads,
            bytes_saved=plain.bytes_saved + 4 * (self.width * (outputs + sums) + self.settings.rank * maps),
            bytes_saved_writes=None
            if self.settings.weights == "none"
            else 4 * self.width * (len(self.readers) + len(anchors)),
        )

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """x_{i+1} from f(x_i), x_i and earlier states (eqs. of section 2, summed)."""
        if state is None:
            return State(written, ())
        x = self._weighted(site, written, state.x)
        if self._has_map(site):
            sources = [state.x] if self.settings.low_rank else []
            if self._num_past(site):
                sources.append(static_sum(getattr(self, f"gamma_{site}"), state.past))
            low = F.linear(sum(sources[1:], sources[0]), getattr(self, f"A_{site}"))
            x = x + F.linear(low, getattr(self, f"B_{site}"))
        return State(x, (state.x, *state.past)[: self.settings.previous])

    def read(self, site: int, state: State) -> dict[str, Tensor]:
        """Normalise."""
        return super().read(site, state.x)

    def _weighted(self, site: int, written: Tensor, x: Tensor) -> Tensor:
        """Alpha f(x) + beta x."""
        if self.settings.weights == "none":
            return x + written
        # Slices, not scalars: a scalar would not widen bfloat16 block outputs to its own float32.
        alpha, beta = (self.get_parameter(name)[site - 1 : site] for name in ("alpha", "beta"))
        if self.settings.weights == "softmax":
            alpha, beta = (2 * torch.stack([alpha, beta]).softmax(0)).unbind()
        return alpha * written + beta * x

    def _num_past(self, site: int) -> int:
        """How many states before x_i block i = `site` can see."""
        return min(self.settings.previous, site - 1)

    def _has_map(self, site: int) -> bool:
        return self.settings.low_rank or self._num_past(site) > 0
