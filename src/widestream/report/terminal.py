"""The comparison in the terminal."""

import textwrap
from collections.abc import Sequence
from typing import TextIO

from widestream.report import comparison_tables
from widestream.report.comparison import Comparison
from widestream.report.downstream import task_table
from widestream.report.formats import visible
from widestream.report.league import is_league, league_table, league_verdict
from widestream.report.table import Table

_NARROWEST = 110
"""Columns of a file or pipe, which has no width of its own; in a narrower terminal a league shows less."""
_HEAD, _LEAST, _GAP = 10, 18, 3
"""Characters of a line in the head of a column, those that names have at least, and those between columns."""


def print_tables(tables: Sequence[Table], file: TextIO | None = None) -> None:
    """Print tables of any kind."""
    console = _console(file)
    for table in tables:
        console.print(_rich(table, console.width))


def print_table(comparison: Comparison, file: TextIO | None = None) -> None:
    """Print warnings, results, resources to equal loss and the verdict; in colour on a terminal only."""
    console = _console(file)
    for mismatch in comparison.mismatches:
        console.print(_words(f"Not comparable: {mismatch.sentence}", style="bold red"))
    league = is_league(comparison)
    tables = (_league(comparison, console.width),) if league else _side_by_side(comparison)
    for table in (*tables, task_table(comparison.tasks)):
        if table is not None:
            console.print(_rich(table, console.width))
    for verdict in (league_verdict(comparison),) if league else comparison.verdict:
        console.print(_words(verdict.headline, style="bold"))
        for fact in verdict.details:
            console.print(_words(f"  {fact}"))
    for line in (*comparison.cautions, *comparison.notes):
        console.print(_words(f"Note: {line}", style="yellow"))


def _side_by_side(comparison: Comparison) -> tuple[Table | None, ...]:
    shown = comparison_tables.results(comparison).without("perplexity", "bits per byte", "non-embedding")
    return shown, comparison_tables.differences(comparison), comparison_tables.resources(comparison)


def _league(comparison: Comparison, width: int) -> Table:
    left_out = ("what it is", "tokens to its best", "parameters", "non-embedding", "FLOPs per token", "peak memory")
    narrow = ("state", "step time") if width < _NARROWEST else ()
    return league_table(comparison, brief=True).without(*left_out, *narrow, "peak rate")


def _console(file: TextIO | None):
    from rich.console import Console

    console = Console(file=file, highlight=False)
    return console if console.is_terminal else Console(file=file, highlight=False, width=_NARROWEST)


def _rich(table: Table, width: int):
    """A table for so many columns.

    Words go on in the next line and are never cut, for long names often differ at their ends; figures do so only where
    the width leaves no room for words beside them.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    shown = RichTable(title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    columns = [[_folded(name, _HEAD), *cells] for name, *cells in zip(table.columns, *table.rows, strict=True)]
    spans = [max(len(line) for cell in cells for line in cell.split("\n")) + _GAP for cells in columns]
    room = (width - sum(spans[table.words :])) // max(table.words, 1) - _GAP
    for number, (head, *_) in enumerate(columns):
        if number < table.words:
            least = min(spans[number] - _GAP, max(room, _LEAST - 6))
            shown.add_column(_words(head), min_width=least if room >= _LEAST else None, overflow="fold")
            columns[number] = [_folded(cell, least) for cell in columns[number]]
        else:
            shown.add_column(_words(head), justify="right", overflow="fold", no_wrap=room >= _LEAST)
    for cells in zip(*(cells for _, *cells in columns), strict=True):
        shown.add_row(*(_words(cell) for cell in cells))
    return shown


def _folded(words: str, width: int) -> str:
    """Words in lines of a width, broken behind spaces and hyphens where that can be."""
    return textwrap.fill(words, width) if len(words) > width else words


def _words(words: str, style: str = ""):
    """Words of any origin, of which the terminal obeys none."""
    from rich.text import Text

    return Text(visible(words), style=style)
