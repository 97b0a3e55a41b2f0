"""Who writes to a stream, and who reads from it: their names.

    token, position          what the embedding writes at site 0
    3.attention.5            vector 5 of what layer 3's attention writes: a head's, where they can be told apart
    3.attention.bias         the bias behind a dense block's W_O, which is no head's
    3.mlp, 3.mlp.2           what layer 3's MLP writes, or data vector 2 of it in a matrix stream
    3.attention.q.5          what head 5 of layer 3 gets as its query (k, v likewise), where a stream hands heads over
    3.attention, 3.mlp, head what an attention block, an MLP, the head gets as one vector
    3.mlp.2, head.2          data vector 2 of it, in a matrix stream

Letters: R data vectors of D_v numbers in a matrix stream; V the axis D_v.
"""

from dataclasses import dataclass

from torch import Tensor

from widestream.blocks.attention import BareAttention
from widestream.blocks.norm import without_norm
from widestream.errors import UserError, shown
from widestream.model.decoder import Decoder
from widestream.streams.base import Block

BIAS = ".bias"
"""Ends the name of a bias that stands behind heads."""


@dataclass(frozen=True, slots=True, order=True)
class Writer:
    """What is written at a site, or one vector of it."""

    site: int
    """0: the embedding; from 1 the blocks."""
    part: str
    """token, position, attention, attention.bias, mlp or branch."""
    layer: int | None = None
    """Of a block."""
    vector: int | None = None
    """Head or data vector; None: all that is written there."""

    @property
    def name(self) -> str:
        """See the file's beginning."""
        return _joined(self.layer, self.part, self.vector)

    @property
    def whole(self) -> "Writer":
        """All that is written there."""
        return Writer(self.site, self.part.removesuffix(BIAS), self.layer)


@dataclass(frozen=True, slots=True, order=True)
class Reader:
    """What a reader gets, or one vector of it."""

    site: int
    """0: the first block; the last one the head."""
    part: str
    """attention, mlp, branch or head."""
    layer: int | None = None
    """Of a block."""
    role: str = "x"
    """x, or q, k, v where a stream hands over three."""
    vector: int | None = None
    """Head or data vector; None: all that is read there."""

    @property
    def name(self) -> str:
        """See the file's beginning."""
        return _joined(self.layer, self.part, None if self.role == "x" else self.role, self.vector)

    @property
    def whole(self) -> "Reader":
        """All that is read there."""
        return Reader(self.site, self.part, self.layer)


def _joined(*parts: object) -> str:
    return ".".join(str(part) for part in parts if part is not None)


def block_of(model: Decoder, site: int) -> Block:
    """The block that writes at `site`."""
    return model.layout[site - 1]


def inner_block(model: Decoder, site: int) -> object:
    """The module that writes at `site`, without a norm behind it."""
    return without_norm(model.blocks[site - 1])


def attention_core(model: Decoder, site: int) -> BareAttention | None:
    """What computes the attention of the block that writes at `site`; None where it is another kind of block."""
    block = inner_block(model, site)
    return block if isinstance(block, BareAttention) else getattr(block, "core", None)


def data_vectors(model: Decoder, width: int) -> int | None:
    """How many data vectors lie side by side in `width` numbers; None where a stream does not cut vectors."""
    value_dim = getattr(model.stream, "value_dim", 0) if model.stream.cuts_vectors else 0
    return width // value_dim if value_dim and width % value_dim == 0 else None


def vectors_of(model: Decoder, x: Tensor) -> Tensor | None:
    """What is written or read as vectors [B, T, N, V]: heads as they are, data vectors out of a row [B, T, V * N].

    None where it is one vector [B, T, D].
    """
    if x.ndim == 4:
        return x
    number = data_vectors(model, x.shape[-1])
    return None if number is None else x.unflatten(-1, (-1, number)).mT


def require_vector(place: Writer | Reader, number: int | None) -> None:
    """Make sure that a place's vector is there.

    Args:
        place: a writer or reader.
        number: how many vectors there are at its site; None: one that is not divided.

    Raises:
        UserError: it is not.
    """
    if place.vector is None or (number is not None and 0 <= place.vector < number):
        return
    what = "one vector that is not divided" if number is None else f"vectors 0 to {number - 1}"
    raise UserError(f"There is no {place.name} in this model: there is {what}; find() gives places by their names.")


def find(name: str, among: list[Writer] | list[Reader]) -> list[Writer] | list[Reader]:
    """Those of this name, or whose name begins with it: `3.attention` is all heads of layer 3.

    Raises:
        UserError: there is none.
    """
    found = [place for place in among if place.name == name or place.name.startswith(f"{name}.")]
    if not found:
        some = ", ".join(place.name for place in among[:3])
        raise UserError(f"There is no {shown(name)!r} in this model; names are such as {some}, {among[-1].name}.")
    return found  # type: ignore[return-value]
