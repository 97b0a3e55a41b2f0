"""A configuration for a stream whose branches somebody else has: sizes, which branches there are, and whose norms."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from widestream.errors import UserError, shown, unknown_name
from widestream.model.build import SMALLER as SMALLER_MODEL
from widestream.recipe.build import build
from widestream.recipe.model import BlockKind, ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams import stream_class
from widestream.streams.base import Stream

Norm = Literal["rmsnorm", "layernorm"]

HEAD_DIM = 64
"""Widest data vectors, and keys of depth attention, where nothing is said of heads."""

SMALLER = "lower dim, sites or a size of the stream"
"""How a stream is made to need less memory."""

WORDS = {
    SMALLER_MODEL: SMALLER, "model.stream.": "", "model.mup.": "mup.", "model.init.": "init.",
    "model.num_layers": "the number of layers", "model.num_heads": "heads", "model.width": "dim",
    "model.norm_eps": "norm_eps", "train.stream_memory": "memory", "train.": "",
    "; give it in the file": "; give it too",
}  # fmt: skip
"""What settings of a recipe are called here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostConfig(ModelConfig):
    """A model of which only the stream is ours."""

    branches: tuple[tuple[BlockKind, ...], ...]
    """The branches of every layer, by kind."""
    own_norms: bool
    """Whether the stream has norms in front of reads; else they are the branches'."""

    @property
    def layer_blocks(self) -> tuple[tuple[BlockKind, ...], ...]:
        """As given."""
        return self.branches

    @property
    def norm_places(self) -> tuple[bool, bool]:
        """Everywhere or nowhere."""
        return self.own_norms, self.own_norms


def host_config(
    kind: str,
    dim: int,
    sites: int | Sequence[str],
    *,
    layer_size: int = 2,
    heads: int | None = None,
    norm: Norm | None = "rmsnorm",
    norm_eps: float = 1e-6,
    neurons: int | None = None,
    init: dict[str, Any] | None = None,
    mup: dict[str, int] | None = None,
    settings: dict[str, Any] | None = None,
) -> HostConfig:
    """A configuration from the arguments of `residual`, which says what they are.

    Raises:
        UserError: they do not fit together, or the kind's design has no place for such branches.
    """
    if not isinstance(kind, str):
        raise UserError(f"kind is {shown(kind)}; it must be the name of a stream, such as 'mhc'.")
    branches = _layers(sites, layer_size)
    for name, size in (("dim", dim), ("heads", heads), ("neurons", neurons)):
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise UserError(f"{name} is {shown(size)}; it must be a whole number, at least 1.")
    if norm not in (None, *get_args(Norm)):
        raise UserError(f"norm is {shown(norm)}; it must be 'rmsnorm', 'layernorm' or None, which leaves norms to you.")
    guessed = heads is None
    heads = heads or default_heads(dim)
    if dim % heads:
        raise UserError(f"heads is {heads}; it must divide dim, {dim}.")
    values = {
        "vocab_size": 1, "context": 1, "num_layers": len(branches), "num_heads": heads, "head_dim": dim // heads,
        "mlp_dim": neurons or 4 * dim, "positions": "none", "norm": norm or "rmsnorm", "norm_eps": norm_eps,
        "init": init or {}, "mup": mup or {}, "stream": {**(settings or {}), "kind": kind},
    }  # fmt: skip
    with host_words():
        config = build(HostConfig, values, "model", "call", branches=branches, own_norms=norm is not None)
        _check(stream_class(kind), config, guessed)
    return config


def default_heads(dim: int) -> int:
    """Into how many parts vectors are cut: at least 4 parts, of up to `HEAD_DIM` numbers."""
    widths = [width for width in range(1, HEAD_DIM + 1) if dim % width == 0 and 4 * width <= dim]
    return dim // max(widths, default=1)


def _layers(sites: int | Sequence[str], layer_size: int) -> tuple[tuple[BlockKind, ...], ...]:
    """Branches, layer by layer; the last layer may have fewer."""
    if isinstance(layer_size, bool) or not isinstance(layer_size, int) or layer_size < 1:
        raise UserError(f"layer_size is {shown(layer_size)}; it must be a whole number, at least 1.")
    if isinstance(sites, int) and not isinstance(sites, bool):
        kinds: list[Any] = ["branch"] * sites
    elif isinstance(sites, Sequence) and not isinstance(sites, str):
        kinds = list(sites)
    else:
        raise UserError(f"sites is {shown(sites)}; it must be the number of branches, or a list of their kinds.")
    if not kinds:
        raise UserError("There are no sites; give the number of branches, such as sites=2 * num_layers.")
    for kind in kinds:
        if kind not in get_args(BlockKind):
            raise unknown_name(f"kind of branch {shown(kind)!r}", str(kind), get_args(BlockKind))
    return tuple(tuple(kinds[start : start + layer_size]) for start in range(0, len(kinds), layer_size))


def _check(cls: type[Stream], config: HostConfig, guessed: bool) -> None:
    """Refuse branches for which the design has no place.

    Raises:
        UserError: says which, and what to do.
    """
    kind = config.stream.kind
    pairs = replace(config, branches=(("attention", "mlp"),) * config.num_layers)
    sized = [block.num_neurons for block in cls.blocks(pairs) if block.num_neurons is not None]
    if 0 in sized:
        raise UserError(
            f"A {kind} stream takes the place of an MLP's matrices, which these branches have; use the kind that it "
            "builds on (matrix_keys: matrix)."
        )
    if sized:
        raise UserError(f"This {kind} stream says how wide MLPs are, but the branches are yours; change that setting.")
    if len(cls.blocks(config)) != config.num_blocks:
        raise UserError(
            f"A {kind} stream takes the place of MLPs; leave them out of sites, which then counts the other branches."
        )
    if guessed and config.head_dim == 1 and cls.cuts_vectors:
        raise UserError(f"A {kind} stream cuts vectors into equal parts, and dim, {config.embed_dim}, has no divisor.")


@contextlib.contextmanager
def host_words() -> Iterator[None]:
    """Complaints in the words of `residual` in place of those of a recipe.

    Raises:
        UserError: the same, reworded.
    """
    try:
        yield
    except UserError as error:
        raise UserError(in_host_words(str(error))) from error


def in_host_words(sentence: str) -> str:
    """A sentence about a recipe's settings as one about arguments."""
    for theirs, ours in WORDS.items():
        sentence = sentence.replace(theirs, ours)
    return sentence


def stream_settings(config: StreamConfig) -> dict[str, Any]:
    """The settings of a stream that are not its kind, as plain values; `norm_eps` is an argument of `residual`."""
    return {name: getattr(config, name) for name in config.__dataclass_fields__ if name not in ("kind", "norm_eps")}
