"""What a tokenizer is to the rest of the package, and the simplest one: the built-in bytes.

Text is only ever text: `<|endoftext|>` and its like, written out in a document, are encoded as ordinary characters.
The boundary id is put in front of documents by `prepare`, and by nobody else.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from widestream.errors import UserError

if TYPE_CHECKING:
    from widestream.data.round_trip import Loss

TOKENIZER_FILE = "tokenizer.json"
"""Name of the tokenizer in a prepared folder."""
BOUNDARY = "<|endoftext|>"
"""Boundary token of GPT-2 and of the tokenizers trained here."""


class Tokenizer(Protocol):
    """What the project needs of a tokenizer. `encode_batch` is called from several threads at a time."""

    kind: str
    """byte, gpt2 or file."""
    vocab_size: int
    """Number of ids; every id is below it."""
    boundary_id: int
    """Id that stands in front of a document; no text is ever encoded to it."""
    sha256: str
    """Names the tokenizer: equal hashes give equal ids."""

    @property
    def engine(self) -> str:
        """What makes the ids, in words: a matter of time only."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, integers [length], without a boundary."""
        ...

    def losses(
        self, texts: Sequence[str], ids: Sequence[np.ndarray], sampled: Sequence[bool]
    ) -> "Sequence[Loss] | None":
        """What the ids of each text do not tell; those not `sampled` need not all be looked at. None: all is told."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; boundaries are left out, incomplete UTF-8 becomes U+FFFD."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` needs into a prepared folder."""
        ...


class ByteTokenizer:
    """The 256 bytes of UTF-8, and 256 for the boundary. Needs no file."""

    kind = "byte"
    vocab_size = 257
    boundary_id = 256
    engine = "numpy"
    sha256 = hashlib.sha256(b"widestream byte tokenizer: id = byte of UTF-8, boundary = 256").hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer`."""
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def losses(self, texts: Sequence[str], ids: Sequence[np.ndarray], sampled: Sequence[bool]) -> None:
        """Nothing is ever lost."""

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer`."""
        ids = [int(i) for i in ids]
        check_ids(ids, self.vocab_size)
        return bytes(i for i in ids if i != self.boundary_id).decode(errors="replace")

    def save(self, folder: Path) -> None:
        """Nothing to write: the definition is built in."""


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise a `UserError` if an id is not in [0, vocab_size)."""
    for i in ids:
        if not 0 <= i < vocab_size:
            raise UserError(f"Token {i} lies outside the vocabulary of {vocab_size} ids: is this the right tokenizer?")
