"""Passes of small models of every kind of stream, looked at."""

from functools import cache
from typing import Any

from widestream.lens import Seen, look
from widestream.recipe.kinds import OWN_KINDS
from widestream.streams import stream_class
from widestream.testing.models import random_model, tokens_of

CASES = [(kind, number) for kind in OWN_KINDS for number in range(len(stream_class(kind).examples))]
"""All kinds with all settings that their contract is tested on."""
NOT_LINEAR = {"depth_lstm", "hier_agg"}
"""What is written goes through a non-linearity on its way to readers."""
TODAY = {
    "norm": "rmsnorm",
    "positions": "rotary",
    "activation": "swiglu",
    "num_kv_heads": 2,
    "norm_place": "both",
    "tied_head": True,
}
"""Blocks of today's models; a norm behind each, too."""


@cache
def seen_of(kind: str, number: int = 0, modern: bool = False) -> Seen:
    """A pass of a small model whose parameters are all far from their start."""
    return seen_with({"kind": kind, **stream_class(kind).examples[number]}, TODAY if modern else {})


def seen_with(stream: dict[str, Any], changes: dict[str, Any], rows: int = 2, length: int = 20) -> Seen:
    """The same of a stream's settings and a model's."""
    return look(random_model(stream, changes).eval(), tokens_of(rows, length))


def writer(seen: Seen, name: str):
    """The writer of this name."""
    return next(one for one in seen.writers() if one.name == name)


def reader(seen: Seen, name: str):
    """The reader of this name."""
    return next(one for one in seen.readers() if one.name == name)
