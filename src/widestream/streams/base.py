"""The contract of a residual stream: a row of exchanges, each a write followed by a read.

Places where something is written are numbered: 0 is the embedding, 1..S the blocks' outputs in order. After each
write exactly one consumer reads: the next block, or, after the last write, the head. model/depth/eager.py is the loop
that drives any stream.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from widestream.blocks.context import Context, Window
from widestream.blocks.roles import Axis, Declared, Roles
from widestream.errors import UserError
from widestream.kernels.exchange import Site
from widestream.recipe.model import BlockKind, ModelConfig
from widestream.recipe.stream import StreamConfig

Reader = BlockKind | Literal["head"]

Settings = TypeVar("Settings", bound=StreamConfig)
"""The dataclass that a stream is set by: `class ReZeroStream(VectorBase[ReZeroConfig])`."""


@dataclass(frozen=True)
class Block:
    """A block between two exchanges."""

    kind: BlockKind
    """What it computes."""
    layer: int
    """Its layer, from 0."""
    window: Window = None
    """attention: how many tokens back it sees."""
    num_neurons: int | None = None
    """mlp: its own number of neurons; default: the model's. 0: no matrices, the non-linearity alone."""


@dataclass(frozen=True)
class StreamSpec:
    """What others may know of a stream without knowing which it is."""

    state_shape: tuple[int, ...]
    """Shape of one token's state, as the literature writes it; RMT: (D_k, D_v)."""
    starts_plain: bool
    """Whether the initial model computes what the plain transformer with the same blocks does, gradients included."""
    attention: Literal["dense", "bare"] = "dense"
    """Form of the attention block: with projections of its own, or fed with q, k, v heads by the stream."""
    history: str = "none"
    """What it keeps of earlier writes, in words."""
    history_size: int = 0
    """Numbers of earlier writes kept per token, at the end of the depth, beside the state."""
    scales_mlp_write: bool = False
    """Whether depth scaling acts on the stream's own storage keys instead of the MLP's W_2."""
    undo: Literal["no", "replay", "steps", "kernel"] = "no"
    """How states can be rebuilt for the backward pass. steps: each from the one after it (`Stream.undo`). kernel:
    likewise, and the whole exchange is one of kernels/exchange.py (`Stream.as_kernel`). replay: by going once more
    from an exact copy, an anchor, through what was written behind it; any exchange that is a function of state and
    written alone will do. no: they are saved, as suits a stream whose states take no more than what is written."""
    papers: tuple[str, ...] = ()
    """Where it comes from: arXiv numbers or addresses."""


@dataclass(frozen=True)
class StreamCost:
    """What a stream costs, beside the blocks, the embedding and the head. Per token, summed over its sites."""

    flops: int
    """Forward FLOPs, two per multiply-add, matrix products only; a training step takes three times as many."""
    bytes_moved: int
    """Bytes of state and history read and written in the forward pass, each once per exchange that touches it."""
    bytes_saved: int
    """Bytes kept for the backward pass by exchanges that autograd records as written."""
    bytes_saved_fused: int | None = None
    """The same where each is one operator (`Stream.as_kernel`); None: the stream has no such form."""
    bytes_saved_writes: int | None = None
    """The same where writes are kept and states rebuilt, beside the one live state (`spec().undo`); with the anchors
    `Stream.anchored` where they are replayed; None: states are not rebuilt."""


@dataclass(frozen=True)
class KernelCall:
    """One exchange in the form of kernels/exchange.py."""

    site: Site
    """Keys, gain and norm."""
    data: Tensor | None
    """The vectors to write [B, T, V, R]; None where nothing is written."""
    by_heads: bool
    """Whether the reader wants the vectors it reads one after the other [B, T, Q, V], not side by side [B, T, V, Q]."""
    dtype: torch.dtype
    """In which precision the reader takes them."""
    hand_over: Callable[[Tensor], dict[str, Tensor]]
    """From the vectors read [B, T, V, Q] to the reader's inputs."""


def anchor_sites(last: int, anchors: int) -> list[int]:
    """The writes, of 0 to `last`, behind which exact copies of the state are kept: evenly spaced."""
    return [-(-last * part // (anchors + 1)) for part in range(1, anchors + 1)]


class Stream(Declared, ABC, Generic[Settings]):
    """Base of all streams. Subclasses give `write`, `read`, `spec` and `cost`; a fused stream may override `exchange`.

    A stream owns everything indexed by site: keys, gates, mixing weights, the norm in front of a read. Its state is a
    tensor or a small structure of tensors, never changed from outside.

    Its settings are one dataclass, `Config`. As the class's parameter, `Stream[MyConfig]`, it tells a type checker what
    `self.settings` and `settings_of` give; without it all works, unchecked.

    Args:
        config: the model's; `config.stream` holds the stream's settings.
        roles: for the roles of its parameters.
    """

    Config: type[Settings]
    """The dataclass of its settings."""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Settings that the contract tests run on; the first is the one that listings describe."""
    limits: ClassVar[tuple[str, ...]] = ()
    """Where the design is known to fail, a sentence each, for listings."""
    models: ClassVar[dict[str, dict[str, Any]]] = {}
    """Released models whose stream this is: their model_type in transformers, and the settings that give it."""
    depth_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that count layers or blocks: a window, a period."""
    cuts_vectors: ClassVar[bool] = False
    """Whether what blocks put out is stored as `num_heads` data vectors."""
    own_bases: ClassVar[tuple[str, ...]] = ("base_width",)
    """muP base sizes of the stream's own axes, of base_width and base_key_dim; another would do nothing."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__()
        self.settings = self.settings_of(config)
        """The stream's settings."""
        foreign = {"base_width", "base_key_dim"} & config.mup_bases.keys() - {*self.own_bases}
        if foreign:
            raise UserError(
                f"A {config.stream.kind} stream has no axis for model.mup.{foreign.pop()}; "
                f"it takes {' and '.join(self.own_bases)}."
            )
        self.undo_by = self.spec(config).undo
        """How its states can be rebuilt; see `StreamSpec.undo`."""
        self.readers: list[Reader] = [*(block.kind for block in self.blocks(config)), "head"]
        self.anchored = anchor_sites(len(self.readers) - 1, self.replay_anchors(config))
        """Sites behind whose write a state is kept if states are replayed and a run says nothing else."""

    @classmethod
    def settings_of(cls, config: ModelConfig) -> Settings:
        """The stream's settings in a model's configuration.

        Raises:
            AssertionError: they are another stream's.
        """
        settings = config.stream
        assert isinstance(settings, cls.Config), (
            f"{cls.__name__} is set by {cls.Config.__name__}, not by {type(settings).__name__}"
        )
        return settings

    @classmethod
    def blocks(cls, config: ModelConfig) -> list[Block]:
        """The blocks between the exchanges, in order; default: all of `config.layer_blocks`.

        `model.attention_window` and `full_attention_every` say how far each attention sees.

        With `model.short_swa` every layer begins with attention over the last w tokens (arXiv 2603.16039, section 2.4):
        S = X + ShortSWA(norm(X); w), A = S + attention(norm(S)), X' = A + MLP(norm(A)).
        """
        blocks = []
        for layer, kinds in enumerate(config.layer_blocks):
            for number, kind in enumerate(kinds):
                short = config.short_swa is not None and number == 0
                window = config.short_swa if short else config.window_of(layer)
                blocks.append(Block(kind, layer, window if kind == "attention" else None))
        return blocks

    @classmethod
    def require_pairs(cls, config: ModelConfig) -> None:
        """For streams whose layers must be attention and MLP.

        Raises:
            UserError: the model has further blocks.
        """
        if config.short_swa is not None:
            raise UserError(f"A {config.stream.kind} stream has no place for model.short_swa; leave it out.")

    @classmethod
    def warnings(cls, config: ModelConfig) -> list[str]:
        """Which of its limits a model meets, a sentence each, which is said when one is built; default: none."""
        return []

    @classmethod
    @abstractmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """What others may know of this stream."""

    @abstractmethod
    def cost(self) -> StreamCost:
        """What this stream costs."""

    @classmethod
    @abstractmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """Closed formula for the number of the stream's own parameters, norms included."""

    @classmethod
    def replay_anchors(cls, config: ModelConfig) -> int:
        """Exact copies that a stream keeps whose states are replayed, if a run says nothing else.

        One behind every L_r = sqrt(n S / (n + 2)) of S blocks, n being how often the width goes into a state. That is
        mHC's rule for n lanes (arXiv 2512.24880, section 4.3.2): an anchor keeps n vectors, and an exchange n + 2 as
        long as its stretch is gone through.
        """
        n, blocks = math.prod(cls.spec(config).state_shape) / config.embed_dim, len(cls.blocks(config))
        stretch = max(1, round(math.sqrt(n * blocks / (n + 2))))
        return -(-blocks // stretch) - 1

    def width_axes(self, roles: Roles) -> tuple[Axis, ...]:
        """Axes of the vectors that blocks receive and put out; default: the width D."""
        return (roles.width,)

    def written_axes(self, roles: Roles, block: Block) -> tuple[Axis, ...]:
        """Axes of what a block puts out; default: those that it receives."""
        return self.width_axes(roles)

    def embedding_axes(self, roles: Roles) -> tuple[Axis, ...]:
        """Axes of token vectors; default: those of blocks."""
        return self.width_axes(roles)

    def position_axes(self, roles: Roles) -> tuple[Axis, ...]:
        """Axes of learned position vectors; default: those of token vectors."""
        return self.embedding_axes(roles)

    def head_axes(self, roles: Roles) -> tuple[Axis, ...]:
        """Axes of what the head receives; default: those of blocks."""
        return self.width_axes(roles)

    def from_plain(self, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of own parameters with which a stream that starts plain takes over a trained plain model.

        All others keep their initial values. The default is for streams that have the plain one's norms, by its names.

        Args:
            plain: parameters of the plain stream, by name: `norms.SITE.gain` and, if there is one, `norms.SITE.bias`.
        """
        return dict(plain)

    def empty(self, context: Context) -> Any:
        """The state before the first write; None where a first write makes it.

        A stream that mixes tokens keeps `context` in its state, for documents (`segments`) and for what earlier tokens
        left behind (`context.cache.memory`).
        """
        return None

    def write_embedding(self, state: Any, token: Tensor, position: Tensor | None) -> Any:
        """Site 0: store token vectors [B, T, D] and, if the model has them, position vectors [1, T, D]."""
        return self.write(0, state, token if position is None else token + position)

    @abstractmethod
    def write(self, site: int, state: Any, written: Tensor) -> Any:
        """Store what the block before `site` has put out; returns the new state."""

    @abstractmethod
    def read(self, site: int, state: Any) -> dict[str, Tensor]:
        """What the consumer at `site` needs, by role: `x` [B, T, D], or `q`, `k`, `v` [B, T, H, D_h]."""

    def exchange(self, site: int, state: Any, written: Any) -> tuple[Any, dict[str, Tensor]]:
        """A write, then a read. `written` is (token, position) at site 0, a block's output afterwards."""
        state = self.write_embedding(state, *written) if site == 0 else self.write(site, state, written)
        return state, self.read(site, state)

    def write_keeping(self, site: int, state: Any, written: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        """Write, and keep what `undo` needs beside `written`; default: nothing. For streams whose spec says `undo`."""
        return self.write(site, state, written), ()

    def undo(self, site: int, state: Any, written: Tensor, kept: tuple[Tensor, ...]) -> Any:
        """The state before the write at `site` from the one after it, up to rounding.

        Args:
            site: from 1.
            state: after the write; left as it is.
            written: the block's output.
            kept: what `write_keeping` kept.
        """
        raise AssertionError(f"{type(self).__name__} says that its writes can be undone, but not how")

    def as_kernel(self, site: int, written: Tensor | None) -> KernelCall:
        """The exchange at `site` for kernels/exchange.py; without `written` a read alone.

        For streams whose spec says `undo="kernel"`; their state is one tensor [B, T, V, K].
        """
        raise AssertionError(f"{type(self).__name__} says that its exchange is a kernel's, but not which")
