"""What shapes prepared data, beside the text and the tokenizer."""

from dataclasses import dataclass

from widestream.errors import UserError

DEFAULT_CUT = 100_000
"""Bytes of a piece of a text file, at most, unless the user says otherwise."""
SMALLEST_CUT = 16
"""A byte order mark and one character of four bytes fit into half of it, so no piece is without text."""
DEFAULT_MAX_RECORD = 16 << 20
"""Bytes of a record, at most, unless the user says otherwise: about twenty times as much memory is needed at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOptions:
    """How text is read, held out, written, and what is forgiven."""

    heldout: float = 0.005
    """Fraction of the documents without a split of their own that is held out, in [0, 1); see `heldout_limit`."""
    shard_tokens: int = 100_000_000
    """Tokens in a shard, at most (a longer document gets a shard of its own)."""
    text_field: str = "text"
    """Field or column that holds the text."""
    cut: int = DEFAULT_CUT
    """Bytes of a document, at most, when a text file is cut, see `read_pieces`; 0: they are left whole."""
    max_record: int = DEFAULT_MAX_RECORD
    """Bytes of a line or of a text, at most; a longer one is a bad record."""
    skip_bad: bool = False
    """Pass over bad records, count them and note the first ones; otherwise the first of them is an error."""
    allow_lost_text: bool = False
    """Go on where the tokenizer loses characters, and note how many; otherwise that is an error."""
    part: tuple[int, int] | None = None
    """Which part of how many, counted from 1, is prepared, see `Corpus.span`; None: everything."""

    def __post_init__(self):
        if not 0 <= self.heldout < 1:
            raise UserError(f"--heldout is {self.heldout}: give a fraction from 0 up to, but not including, 1.")
        if self.shard_tokens < 1:
            raise UserError(f"--shard-tokens is {self.shard_tokens}: give 1 or more.")
        if self.cut != 0 and self.cut < SMALLEST_CUT:
            raise UserError(f"--cut is {self.cut}: give at least {SMALLEST_CUT} bytes, or 0 to leave text files whole.")
        if self.max_record < max(self.cut, SMALLEST_CUT):
            raise UserError(
                f"--max-record is {self.max_record}: give at least {max(self.cut, SMALLEST_CUT)} bytes, "
                "as many as --cut lets a document have."
            )
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise UserError(f"--part is {self.part[0]}/{self.part[1]}: the parts of n are 1/n, 2/n, up to n/n.")


def parse_part(text: str) -> tuple[int, int]:
    """What --part says: which part, and of how many.

    Raises:
        UserError: it is not of the form i/n.
    """
    match text.split("/"):
        case [part, parts] if part.isdecimal() and parts.isdecimal():
            return int(part), int(parts)
    raise UserError(f"--part is {text!r}: give which part of how many, such as 3/8.")


DEFAULTS = PrepareOptions()
FORGIVING = ("max_record", "skip_bad", "allow_lost_text")
"""Options that change nothing unless a record was passed over or text was lost."""
