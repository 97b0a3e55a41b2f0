"""Residual streams: the one part of the model that is swapped.

`base.py` is the contract. One file per stream, in four families: `vector` (one vector, to which blocks add), `depth`
(earlier writes, added up anew for every reader), `lanes` (several vectors, mixed), `matrix` (an outer-product memory:
RMT and its relatives). `recipe/kinds.py` lists them by name.
"""

from typing import TYPE_CHECKING

from widestream.recipe.kinds import OWN_KINDS, kinds, load_kind

if TYPE_CHECKING:
    from widestream.streams.base import Stream

__all__ = ["OWN_KINDS", "kinds", "stream_class"]


def stream_class(kind: str) -> "type[Stream]":
    """The class of a stream kind: a name from `kinds`, or `module:Class` of the user's own.

    Raises:
        UserError: see `recipe.kinds.load_kind`.
    """
    return load_kind(kind)
