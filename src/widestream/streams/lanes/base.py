"""What the streams with several lanes share: hyper_connections.py, mhc.py, generalized_hc.py.

The state is H [n, W]: n lanes of width W = D / m. In front of a block m mixtures of lanes, side by side, are what the
block gets, and the lanes themselves are mixed; behind it the m parts of the block's output y go to all lanes.

    u  = [A_m^T H]          A_m [n, m]     what the block gets, through the plain stream's norm
    H' = B^T y + A_r^T H    A_r [n, n], B [m, n]

A design says where A and B come from (`coefficients`), what the embedding leaves in the lanes (`spread`) and what the
head gets (`read_out`). Both steps happen in a write: the next reader's coefficients are functions of the lanes, and
what they decide about the way back waits in the state while the block works.

Letters: B batch, T tokens, n lanes, m segments, W lane width, D = m W. Everything here stays in float32 under autocast.
"""

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor

from widestream.blocks.norm import read_norms
from widestream.blocks.roles import Roles
from widestream.kernels.autocasting import no_autocast
from widestream.recipe.model import ModelConfig
from widestream.streams.base import Settings, Stream, StreamCost


class Lanes(NamedTuple):
    """The state between a write and the next one."""

    given: Tensor
    """What the reader gets, before its norm [B, T, D]."""
    carried: Tensor | None = None
    """The lanes as they go past the block [B, T, n, W]; None in front of the head."""
    weights: Tensor | None = None
    """B: with which weight each of the block's m parts goes to each lane [..., m, n]; None in front of the head."""


EQUAL_LANES = (
    "With more lanes than blocks some lanes stay equal copies of each other, in training too: those that no block "
    "behind the first one starts by reading."
)
"""A limit of designs in which the block of site k starts by reading lane k mod n."""


def warn_of_equal_lanes(lanes: int, config: ModelConfig) -> list[str]:
    """That this model meets `EQUAL_LANES`, if it does."""
    if lanes <= config.num_blocks:
        return []
    return [
        f"model.stream.lanes is {lanes}, more than the {config.num_blocks} blocks: some lanes will stay equal copies "
        f"of each other, and the stream no wider than with {config.num_blocks}."
    ]


class LaneBase(Stream[Settings]):
    """n lanes of width D / m; one pre-norm in front of every block and of the head, as in the plain stream.

    Args:
        config, roles: see `Stream`.
        lanes: n.
        segments: m.
    """

    def __init__(self, config: ModelConfig, roles: Roles, lanes: int, segments: int = 1):
        super().__init__(config, roles)
        self.lanes, self.segments, self.lane_width = lanes, segments, config.embed_dim // segments
        self.num_blocks = len(self.readers) - 1
        self.embedded = config.embed_dim
        """Width of token vectors."""
        shape = (config.embed_dim,)
        self.norms = read_norms(config, roles, self.readers, shape)

    @abstractmethod
    def coefficients(self, site: int, H: Tensor) -> tuple[Tensor, Tensor]:
        """How the lanes [B, T, n, W] are mixed around the block at `site`.

        Returns:
            [A_m A_r]^T [..., m + n, n], or A_m^T alone [..., m, n] where the lanes go past unmixed; and B [..., m, n].
            Without leading axes where they are the same for all tokens.
        """

    def spread(self, embedding: Tensor) -> Tensor:
        """The lanes at the start [B, T, n, W]; default: a copy of the embedding [B, T, D] in each."""
        return embedding.unsqueeze(-2).expand(*embedding.shape[:-1], self.lanes, self.lane_width)

    def read_out(self, H: Tensor) -> Tensor:
        """What the head gets of the last lanes, before its norm [B, T, D]; default: their mean.

        The designs say sum. A norm does not see the factor n, but its eps does: of equal lanes the mean is the lane.
        """
        return H.mean(-2)

    def deposit(self, state: Lanes, written: Tensor) -> Tensor:
        """H' = A_r^T H + B^T y: written [B, T, D] -> lanes [B, T, n, W]."""
        assert state.carried is not None
        assert state.weights is not None
        y = written.to(state.carried.dtype).unflatten(-1, (self.segments, self.lane_width))
        return state.carried + state.weights.mT.expand(*y.shape[:-2], -1, -1) @ y

    def mix(self, site: int, H: Tensor) -> Lanes:
        """Make u = A_m^T H and A_r^T H.

        Two products: the norm keeps u for the backward pass, which as a part of one would keep all of it. Coefficients
        are expanded to all tokens, because a product with one matrix would turn, and copy, the lanes.
        """
        mixing, weights = self.coefficients(site, H)
        mixing = mixing.expand(*H.shape[:-2], -1, -1)
        given, past = mixing[..., : self.segments, :], mixing[..., self.segments :, :]
        return Lanes((given @ H).flatten(-2), past @ H if past.shape[-2] else H, weights)

    def write(self, site: int, state: Lanes | None, written: Tensor) -> Lanes:
        """Into the lanes, and on to what the next reader gets of them."""
        with no_autocast(written.device):
            H = self.spread(written) if state is None else self.deposit(state, written)
            return Lanes(self.read_out(H)) if self.readers[site] == "head" else self.mix(site, H)

    def read(self, site: int, state: Lanes) -> dict[str, Tensor]:
        """Normalise."""
        return {"x": self.norms[site](state.given)}

    def lane_cost(self, map_flops: int, mixes: bool, dynamic: bool, kept: int = 0) -> StreamCost:
        """The cost of mixing and of a plain embedding and read-out.

        Args:
            map_flops: FLOPs of a token's coefficients at one block.
            mixes: whether lanes are mixed with each other on their way past.
            dynamic: whether every token has coefficients of its own.
            kept: numbers that computing a token's coefficients at one block leaves for the backward pass.
        """
        state, width = self.lanes * self.lane_width, self.segments * self.lane_width
        rows = 2 * self.segments + (self.lanes if mixes else 0)
        given, carried = self.segments * self.lanes, self.lanes**2 if mixes else 0  # entries of A_m (or B) and of A_r
        anchor = state + width + (given if dynamic else 0)
        return StreamCost(
            flops=self.num_blocks * (2 * state * rows + map_flops),
            bytes_moved=4 * 2 * state * len(self.readers),
            # Around a block: the lanes that were mixed, the input of the norm, the output that was written, weights.
            bytes_saved=4 * (self.num_blocks * (state + 2 * width + 2 * given + carried + kept) + width),
            bytes_saved_writes=4 * (self.num_blocks * width + self.embedded + anchor * len(self.anchored)),
        )
