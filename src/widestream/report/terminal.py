"""The comparison in the terminal."""

from collections.abc import Sequence
from typing import TextIO

from widestream.report import comparison_tables
from widestream.report.comparison import Comparison
from widestream.report.formats import visible
from widestream.report.league import is_league, league_table, league_verdict
from widestream.report.table import Table

_NARROWEST = 110
"""Columns of a file or pipe, which has no width of its own."""


def print_tables(tables: Sequence[Table], file: TextIO | None = None) -> None:
    """Print tables of any kind."""
    console = _console(file)
    for table in tables:
        console.print(_rich(table))


def print_table(comparison: Comparison, file: TextIO | None = None) -> None:
    """Print warnings, results, resources to equal loss and the verdict; in colour on a terminal only."""
    console = _console(file)
    for mismatch in comparison.mismatches:
        console.print(_words(f"Not comparable: {mismatch.sentence}", style="bold red"))
    league = is_league(comparison)
    for table in (_league(comparison),) if league else _side_by_side(comparison):
        if table is not None:
            console.print(_rich(table))
    for verdict in (league_verdict(comparison),) if league else comparison.verdict:
        console.print(_words(verdict.headline, style="bold"))
        for fact in verdict.details:
            console.print(_words(f"  {fact}"))
    for line in (*comparison.cautions, *comparison.notes):
        console.print(_words(f"Note: {line}", style="yellow"))


def _side_by_side(comparison: Comparison) -> tuple[Table | None, ...]:
    shown = comparison_tables.results(comparison).without("perplexity", "bits per byte", "non-embedding")
    return shown, comparison_tables.differences(comparison), comparison_tables.resources(comparison)


def _league(comparison: Comparison) -> Table:
    return league_table(comparison).without(
        "what it is", "tokens to its best", "parameters", "FLOPs per token", "peak rate"
    )


def _console(file: TextIO | None):
    from rich.console import Console

    console = Console(file=file, highlight=False)
    return console if console.is_terminal else Console(file=file, highlight=False, width=_NARROWEST)


def _rich(table: Table):
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    shown = RichTable(title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(table.columns):
        shown.add_column(_words(column), justify="left" if number < table.words else "right")
    for row in table.rows:
        shown.add_row(*(_words(cell) for cell in row))
    return shown


def _words(words: str, style: str = ""):
    """Words of any origin, of which the terminal obeys none."""
    from rich.text import Text

    return Text(visible(words), style=style)
