"""Attention over the depth: every block first looks back at earlier states of its own token ("Residual Stream Duality
in Modern Transformer Architectures", Yifan Zhang, arXiv 2603.16039, section 2.2).

    h^0 = embedding,  h^{l+1} = x^l + block_l(norm(x^l)),  n^i = norm(h^i)
    q = W_Q n^l,  k_i = W_K n^i,  v_i = W_V n^i          i = l - K + 1 .. l  (from 0)
    z^l = softmax_i(q . k_i / sqrt(d_k)) . v_i            (the depth read)
    x^l = h^l + z^l

What it changes: a content-dependent sum over the last K states is added to the stream in front of every block
(`every: sublayer`) or of every layer (`every: layer`). It is the same function as attention over the last w tokens
(`model.short_swa`), along the other axis; tests/streams/test_depth_attention.py holds the two to each other.

Cost: per read D^2 + 2 D d_k weights and twice as many FLOPs, and 4 K D FLOPs for the mixing; and K states kept alive
per token. W_K and W_V act on the query and on the mix (q . W_K n_i = W_K^T q . n_i, and sum_i a_i W_V n_i =
W_V sum_i a_i n_i), so that they cost the same for any K. W_V starts at zero, so the model starts as the plain
transformer.

Evidence: none; the paper has no experiments, and itself recommends the sequence axis. It defines z^l and does not say
what is done with it, nor which norm comes first. Both are taken here from its sequence-axis form,
S = X + ShortSWA(norm(X); w); the norm has no gain, which W_Q, W_K and W_V would take in. The paper's states are those
between layers, and it reads once per layer (`every: layer`). Where there is but one state there is nothing to attend
to, and no read: at the first block. The head reads x without one, as the paper counts L reads.

Vertical attention (Kojima et al., OpenReview A6uabXKiXc) puts a module at the entry of each layer that attends over
the outputs of all earlier layers; its authors report lower loss at 50M to 300M parameters and 20B tokens. Its exact
equations are unavailable to us: `vertical_attention` is the depth read above with K = full, at the entry of each layer.

Letters: B batch, T tokens, D width, K window, n sources, d_k key width.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.norm import Norm, read_norms, read_norms_size
from widestream.blocks.roles import Axis, Roles
from widestream.errors import UserError
from widestream.kernels.autocasting import no_autocast
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import Block, Stream, StreamCost, StreamSpec


def attend_back(queries: Tensor, sources: Tensor, axis: int, window: int | None, scale: float) -> Tensor:
    """Causal attention along any axis, over sources that are keys and values at once.

    Args:
        queries: [..., q, ..., D], those of the last q places along `axis`.
        sources: [..., n, ..., D], all places so far.
        axis: the ordered one, of tokens or of depth; neither the last nor counted from the end.
        window: how many places a query sees, its own counted; None: all.
        scale: of the logits.

    Returns:
        [..., q, ..., D], the weighted sums of sources.
    """
    queries, sources = queries.movedim(axis, -2), sources.movedim(axis, -2)
    places = torch.arange(sources.shape[-2], device=sources.device)
    behind = places[-queries.shape[-2] :, None] - places
    hidden = (behind < 0) if window is None else (behind < 0) | (behind >= window)
    logits = (scale * queries @ sources.mT).masked_fill(hidden, float("-inf"))
    return (logits.softmax(-1) @ sources).movedim(-2, axis)


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthAttentionConfig(StreamConfig):
    """The window is counted in states: of one per block, or one per layer."""

    kind: Literal["depth_attention"] = "depth_attention"
    """This stream."""
    window: int | None = None
    """[K] States that a read sees, the newest counted; null: all."""
    every: Literal["sublayer", "layer"] = "sublayer"
    """In front of what there is a read, and a state to be read: every block, or every layer."""
    key_dim: int | None = None
    """[d_k] Width of queries and keys; default: the model's head_dim."""

    def __post_init__(self):
        if self.window is not None and self.window < 2:
            raise UserError(f"model.stream.window is {self.window}; it must be at least 2, or null for all.")
        if self.key_dim is not None and self.key_dim < 1:
            raise UserError(f"model.stream.key_dim is {self.key_dim}; it must be at least 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class VerticalAttentionConfig(StreamConfig):
    """Depth attention with its two choices made: all earlier layers, read at the entry of each layer."""

    kind: Literal["vertical_attention"] = "vertical_attention"
    """This stream."""
    key_dim: int | None = None
    """[d_k] Width of queries and keys; default: the model's head_dim."""

    def __post_init__(self):
        if self.key_dim is not None and self.key_dim < 1:
            raise UserError(f"model.stream.key_dim is {self.key_dim}; it must be at least 1.")

    @property
    def window(self) -> None:
        """All states."""
        return None

    @property
    def every(self) -> Literal["layer"]:
        """A read and a state per layer."""
        return "layer"


DepthSettings = TypeVar("DepthSettings", bound=DepthAttentionConfig | VerticalAttentionConfig)


class DepthState(NamedTuple):
    """The stream and what of its past later reads will see."""

    x: Tensor
    """The stream [B, T, D]."""
    past: tuple[Tensor, ...]
    """Normalised states n^i, oldest first [B, T, D] each."""


class DepthAttentionBase(Stream[DepthSettings]):
    """x [B, T, D] and the last K normalised states; one pre-norm in front of every block and of the head."""

    own_bases = ("base_width", "base_key_dim")

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        self.width = config.embed_dim
        self.key_dim = self.settings.key_dim or config.head_dim
        self.num_sources = _num_sources(self.settings, self.blocks(config))
        shape = (self.width,)
        self.norms = read_norms(config, roles, self.readers, shape)
        self.source_norm = Norm(config, roles, shape, has_gain=False)
        keys = Axis(self.key_dim, config.mup.base_key_dim or self.key_dim)
        assert keys.base is not None
        self.scale = math.sqrt(keys.base) / keys.size  # 1 / sqrt(d_k) at the base size
        for site, sources in enumerate(self.num_sources):
            if sources > 1:
                to_keys = roles.hidden((roles.width,), (keys,), "stream", decay="key")
                to_values = roles.hidden((roles.width,), (roles.width,), "stream", decay="key")
                self.declare(f"W_Q_{site}", (self.key_dim, self.width), to_keys)
                self.declare(f"W_K_{site}", (self.key_dim, self.width), to_keys)
                self.declare(f"W_V_{site}", (self.width, self.width), replace(to_values, std=0.0))

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D, and up to K earlier ones."""
        settings = cls.settings_of(config)
        kept = "all states" if settings.window is None else f"the last {settings.window} states"
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=True,
            history=f"{kept}, one per {'block' if settings.every == 'sublayer' else 'layer'}",
            history_size=max(_num_sources(settings, cls.blocks(config))) * config.embed_dim,
            undo="replay",
            papers=("2603.16039",),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """D^2 + 2 D d_k for each of 2 L - 1 reads (`every: layer`: L - 1), and (2 L + 1) D gains."""
        settings, D, blocks = cls.settings_of(config), config.embed_dim, len(cls.blocks(config))
        reads = (blocks if settings.every == "sublayer" else config.num_layers) - 1
        return reads * (D * D + 2 * D * (settings.key_dim or config.head_dim)) + read_norms_size(config, D)

    def cost(self) -> StreamCost:
        """Per read: two FLOPs per weight, and 4 n D for mixing n sources, which are read once and saved as a stack.

        An anchor keeps the stream and the sources of later reads, of which the next one has most.
        """
        D, d_k = self.width, self.key_dim
        reads = [sources for sources in self.num_sources if sources > 1]
        kept = sum(sources > 0 for sources in self.num_sources)
        vectors = 2 * len(self.readers) + kept + sum(reads)
        # With the stack, the newest source, W_K^T q and the mix; beside them q and the softmax.
        saved = len(self.readers) + kept + sum(n + 3 for n in reads)
        entries = [site for site, sources in enumerate(self.num_sources) if sources]
        sources = set()
        for anchor in self.anchored:
            passed = [site for site in entries if site <= anchor]
            sources |= {*passed[-self.num_sources[passed[-1]] :]}
        return StreamCost(
            flops=sum(2 * D * (D + 2 * d_k) + 4 * n * D for n in reads),
            bytes_moved=4 * D * vectors,
            bytes_saved=4 * (D * saved + sum(n + d_k for n in reads)),
            bytes_saved_writes=4 * D * (len(self.readers) + len(self.anchored) + len(sources)),
        )

    def write(self, site: int, state: DepthState | None, written: Tensor) -> DepthState:
        """State h = x + written; x = h + z, where there is a depth read in front of the next block."""
        h, past = (written, ()) if state is None else (state.x + written, state.past)
        sources = self.num_sources[site]
        if sources:
            past = (*past, self.source_norm(h))[-sources:]
        return DepthState(h + self.depth_read(site, past) if sources > 1 else h, past)

    def depth_read(self, site: int, past: tuple[Tensor, ...]) -> Tensor:
        """Read z = sum_i softmax_i(W_Q n^l . W_K n^i / sqrt(d_k)) W_V n^i of the sources n^i, n^l the newest."""
        W_Q, W_K, W_V = (getattr(self, f"W_{name}_{site}") for name in "QKV")
        query = F.linear(F.linear(past[-1], W_Q), W_K.T)  # W_K^T q
        with no_autocast(query.device):
            sources = torch.stack(past, dim=2)  # [B, T, n, D]
            mix = attend_back(query.to(sources.dtype)[:, :, None], sources, 2, self.settings.window, self.scale)
        return F.linear(mix[:, :, 0], W_V)

    def read(self, site: int, state: DepthState) -> dict[str, Tensor]:
        """Normalise."""
        return {"x": self.norms[site](state.x)}


class DepthAttentionStream(DepthAttentionBase[DepthAttentionConfig]):
    """A window of states, read in front of every block or every layer."""

    Config = DepthAttentionConfig
    depth_settings = ("window",)
    examples = (
        {},
        {"window": 2},
        {"window": 3, "key_dim": 5},
        {"every": "layer"},
        {"every": "layer", "window": 2},
    )


class VerticalAttentionStream(DepthAttentionBase[VerticalAttentionConfig]):
    """All earlier layers, read at the entry of each layer."""

    Config = VerticalAttentionConfig
    examples = ({}, {"key_dim": 5})


def _num_sources(settings: DepthAttentionConfig | VerticalAttentionConfig, blocks: list[Block]) -> list[int]:
    """How many states are read in front of every consumer; 0 where neither a read is nor a state is kept."""
    kept, numbers = 0, []
    for site, block in enumerate(blocks):
        entry = settings.every == "sublayer" or site == 0 or block.layer != blocks[site - 1].layer
        kept += entry
        numbers.append(min(kept, settings.window or kept) if entry else 0)
    return [*numbers, 0]
