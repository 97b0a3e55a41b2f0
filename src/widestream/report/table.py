"""A table of text: what the terminal and the pages show alike."""

from dataclasses import dataclass, replace

NONE = "–"
"""Stands where there is no figure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of text."""

    title: str
    """Heading."""
    caption: str
    """What the figures are, in a sentence or two; may be empty."""
    columns: tuple[str, ...]
    """Names of the columns; the first names the rows."""
    rows: tuple[tuple[str, ...], ...]
    """Cells."""
    words: int = 1
    """How many columns, from the first, hold words and are set to the left; the others hold figures."""

    def without(self, *columns: str) -> "Table":
        """The table less some columns."""
        kept = [i for i, column in enumerate(self.columns) if column not in columns]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        words = sum(i < self.words for i in kept)
        return replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows, words=words)
