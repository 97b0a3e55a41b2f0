"""Parallel lanes: attention reads one, the MLP the other, and both write to both (modded-nanogpt, pull request 230).

    f  = attention(norm(x^0))  or  MLP(norm(x^1))
    x^j <- r x^j + p_j f            j = 0, 1; r, p_0, p_1 of each block
    head: norm((x^0 + x^1) / 2)

The first layers have one lane, which is copied in front of layer `first`.

Changes: what attention leaves for the MLPs and what it leaves for later attention can differ, and likewise the MLPs'.
Costs: r and p_0 for every block and p_1 for those with two lanes, 2 to 3 numbers a block; in the last layers a state
twice as wide.
Does not start plain: attention's p_1 is 1.5 (the author's), as lanes that start equal did not help him. With `cross: 1`
it does.
Evidence: 45 steps and .85 s fewer of a record of 8 GPUs, from layer 7 of 11 on (2026-02).
Where the source parts: r starts there at the square root of 1.1, which the record had before without lanes; here at 1.
Its weighted embeddings, skips and exit from the middle are not here (`x0_scalars`, `backout`). The form of
openai/parameter-golf, pull request 1529, where a layer's attention and MLP read before either writes, needs both in one
exchange and is not here.

Letters: B batch, T tokens, D width, L layers, j lanes.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from widestream.blocks.roles import Role, Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.vector.plain import VectorBase


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig(StreamConfig):
    """From where on there are two lanes, and what tells them apart at first."""

    kind: Literal["parallel"] = "parallel"
    """This stream."""
    first: int | None = None
    """The first layer with two lanes, from 0; default: floor(2 L / 3), the speedrun's 7 of 11."""
    cross: float = 1.5
    """What p_1 of attention starts as; all other p start as 1."""

    def __post_init__(self):
        if self.first is not None and self.first < 0:
            raise UserError(f"model.stream.first is {self.first}; it must be at least 0.")


class State(NamedTuple):
    """The lanes."""

    x0: Tensor
    """What attention reads [B, T, D]."""
    x1: Tensor | None
    """What MLPs read [B, T, D]; None as long as there is one lane."""


class ParallelStream(VectorBase[ParallelConfig]):
    """One lane, later two [B, T, D]; norms as in the plain stream."""

    Config = ParallelConfig
    limits = (
        "Removed again by modded-nanogpt's pull request 241: loss and time were better where its last attention layers "
        "all read one stored state; dense connections of the last layers (mudd with trim) then beat both (259).",
    )
    examples = ({}, {"first": 0, "cross": 1.0})

    carry: Tensor
    """r of every block [S]."""
    first_lane: Tensor
    """p_0 of every block [S]."""
    second_lane: Tensor
    """p_1 of every block with two lanes."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        blocks = self.blocks(config)
        self.num_blocks, self.single = len(blocks), num_single(self.settings, config)
        self.of_attention = torch.tensor([block.kind == "attention" for block in blocks[self.single :]], device="cpu")
        weights = Role(std=None, decay="none", part="stream")
        self.declare("carry", (self.num_blocks,), weights)
        self.declare("first_lane", (self.num_blocks,), weights)
        self.declare("second_lane", (self.num_blocks - self.single,), weights)

    def initial_values(self) -> dict[str, Tensor]:
        """p_1 of attention."""
        return {"second_lane": torch.where(self.of_attention, self.settings.cross, 1.0)}

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """Two vectors of width D."""
        return StreamSpec(
            state_shape=(2, config.embed_dim),
            starts_plain=cls.settings_of(config).cross == 1,
            undo="replay",
            papers=(
                "https://github.com/KellerJordan/modded-nanogpt/pull/230",
                "https://github.com/openai/parameter-golf/pull/1529",
            ),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """The plain stream's gains, 2 numbers a block, and a third where there are two lanes."""
        blocks = len(cls.blocks(config))
        return super().parameter_formula(config) + 3 * blocks - num_single(cls.settings_of(config), config)

    def cost(self) -> StreamCost:
        """No product. Saved: outputs and lanes as they are weighted, beside the norms' inputs."""
        plain, vector = super().cost(), 4 * self.width
        double = self.num_blocks - self.single  # blocks in front of which there are two lanes
        # A norm's input is one of the lanes, but for the head's; an output is saved once, whatever it is weighted by.
        saved = len(self.readers) + self.num_blocks + max(0, double - 1)
        anchored = sum(2 if site > self.single else 1 for site in self.anchored)
        return replace(
            plain,
            bytes_moved=plain.bytes_moved + 2 * vector * double,
            bytes_saved=vector * saved,
            bytes_saved_writes=vector * (len(self.readers) + anchored),
        )

    def write(self, site: int, state: State | None, written: Tensor) -> State:
        """To one lane or both; in front of the head, their mean."""
        state = State(written, None) if state is None else self._written(site - 1, state, written)
        if self.readers[site] == "head":
            assert state.x1 is not None
            return State((state.x0 + state.x1) / 2, None)
        return state if site < self.single else State(state.x0, state.x0 if state.x1 is None else state.x1)

    def _written(self, block: int, state: State, f: Tensor) -> State:
        # Slices, not scalars: a scalar would not widen bfloat16 block outputs to its own float32.
        r, p = self.carry[block : block + 1], self.first_lane[block : block + 1]
        x0 = r * state.x0 + p * f
        if state.x1 is None:
            return State(x0, None)
        double = block - self.single
        return State(x0, r * state.x1 + self.second_lane[double : double + 1] * f)

    def read(self, site: int, state: State) -> dict[str, Tensor]:
        """Normalise the reader's lane."""
        reads_second = self.readers[site] == "mlp" and state.x1 is not None
        return super().read(site, state.x1 if reads_second else state.x0)


def num_single(settings: ParallelConfig, config: ModelConfig) -> int:
    """Blocks in front of which there is one lane.

    Raises:
        UserError: all of the model's layers are in front of the first with two lanes.
    """
    L = config.num_layers
    first = 2 * L // 3 if settings.first is None else settings.first
    if first >= L:
        raise UserError(f"model.stream.first is {first}; of {L} layers the last one is {L - 1}.")
    return first * config.blocks_per_layer
