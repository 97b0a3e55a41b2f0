"""Residual streams: the one part of the model that is swapped. One file per stream; base.py is the contract."""

import importlib
from typing import TYPE_CHECKING

from widestream.errors import UserError, unknown_name

if TYPE_CHECKING:
    from widestream.streams.base import Stream

KINDS = {
    "vector": "widestream.streams.vector:VectorStream",
    "matrix": "widestream.streams.matrix:MatrixStream",
}


def stream_class(kind: str) -> "type[Stream]":
    """The class of a stream kind: one of `KINDS`, or `module:Class` of the user's own.

    Raises:
        UserError: unknown kind (suggests the nearest), or a module or class that cannot be found.
    """
    target = KINDS.get(kind, kind)
    module, colon, name = target.partition(":")
    if not colon:
        raise unknown_name(f"stream kind {kind!r}", kind, [*KINDS, "module:Class of your own"])
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"The stream {kind!r} cannot be loaded: {error}.") from error


def config_class(kind: str) -> type:
    """The configuration dataclass of a stream kind."""
    return stream_class(kind).Config
