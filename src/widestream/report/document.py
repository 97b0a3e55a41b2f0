"""The frame of every HTML page: head and style, tables, charts. One file that loads nothing, light and dark."""

from collections.abc import Iterable, Mapping
from functools import cache
from html import escape
from importlib.resources import files

from widestream.report.figures.svg import Chart, chart_css, css_variables, render
from widestream.report.tables import Table

WIDE, NARROW = (520, 350), (358, 300)
"""Sizes of a chart beside others on a desk, and alone on a phone. Letters are 13 units high in both."""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page around its parts; empty ones are left out."""
    body = "\n".join(filter(None, parts))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"<style>\n{_css()}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


@cache
def _css() -> str:
    sheet = files("widestream.report.figures").joinpath("page.css").read_text(encoding="utf-8")
    light, dark = css_variables("light"), css_variables("dark")
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{sheet}{chart_css()}"
    )


def both_sizes(chart: Chart) -> str:
    """The chart for a desk and for a phone; the style sheet shows one of them."""
    return f'<div class="wide">{render(chart, *WIDE)}</div><div class="narrow">{render(chart, *NARROW)}</div>'


def html_table(table: Table | None, colours: Mapping[str, int] | None = None, level: int = 2) -> str:
    """A table in a box of its own to scroll in, under a heading of a level.

    Rows whose first cell has a colour (of a model) carry it.
    """
    if table is None:
        return ""
    colours = colours or {}
    word = ["" if number >= table.words else ' class="word"' for number in range(len(table.columns))]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for kind, name in zip(word, table.columns, strict=True))
    rows = "\n".join(
        f'<tr><th scope="row" class="word">{_key(colours.get(first))}{escape(first)}</th>'
        + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(word[1:], cells, strict=True))
        + "</tr>"
        for first, *cells in table.rows
    )
    caption = f'<p class="soft">{escape(table.caption)}</p>\n' if table.caption else ""
    return (
        f'<section>\n<h{level}>{escape(table.title)}</h{level}>\n{caption}<div class="box" tabindex="0" role="region" '
        f'aria-label="{escape(table.title)}"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>'
        "</div>\n</section>"
    )


def _key(number: int | None) -> str:
    return "" if number is None else f'<span class="key" style="--c:var(--s{number % 6})"></span>'
