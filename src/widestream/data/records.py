"""What a source is read into, before it is a document: records, good or bad."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widestream.data.options import PrepareOptions

SPLIT_FIELD = "split"
"""Field of a record that says whether it is `train`, `heldout` or `test`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a record, or a line of a text file, cannot be used."""

    what: str
    """Where it is and what is wrong, for a sentence."""
    mend: str = "mend or remove it"
    """What to do about it."""
    bad: int = 1
    """Records, or lines of a text file, that it is about."""


@dataclass(frozen=True, slots=True)
class Record:
    """One raw record of a source."""

    after: int
    """Where to start in order to read the next one: the number of lines or rows so far, or for a text file of bytes."""
    text: Any
    """The text field, of whatever type was found; empty where a problem hides it."""
    split: Any
    """The split field, or None."""
    where: str
    """For messages: file and line or row."""
    consumed: int
    """Bytes of the file on disk read so far; 0 if unknown."""
    problem: Problem | None = None
    """What makes it, or a part of it, unusable."""


Reader = Callable[[Path, PrepareOptions, int], Iterator[Record]]
"""(path, how to read it, where to start: 0 or a record's `after`) -> records."""


def too_long(what: str, size: int, limit: int) -> Problem:
    """A record above the limit. `size`: how long it is known to be."""
    return Problem(f"{what} has {size:,} bytes, more than --max-record {limit:,}", "raise --max-record or remove it")


def no_field(where: str, text_field: str, names: list[str]) -> Problem:
    """A record or table without the field of the text."""
    there = ", ".join(name[:60] for name in names[:20]) + (", ..." if len(names) > 20 else "") or "none"
    return Problem(f"{where}: no field '{text_field}' (there is {there})", "name the right one with --text-field")
