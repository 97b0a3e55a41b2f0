"""Residual streams: the one part of the model that is swapped.

`base.py` is the contract. One file per stream, in four families, each of which lists its streams:

    vector   one vector, to which blocks add
    depth    earlier writes are kept, and read again later
    lanes    several vectors side by side, mixed on their way past every block
    matrix   an outer-product memory: the Residual Matrix Transformer and its relatives

`depth_sums.py` is what streams with a history share. `recipe/kinds.py` has all kinds by name.
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
