"""Differences as dots with their intervals, one row each: a forest plot."""

from collections.abc import Sequence
from dataclasses import dataclass

from widestream.report import formats
from widestream.report.figures.scales import Scale, with_room
from widestream.report.figures.svg import figure, svg_text, upright_grid
from widestream.report.stats.intervals import Interval

ROW = 26
"""Height of a row."""
_TOP, _BOTTOM = 26, 44


@dataclass(frozen=True, kw_only=True, slots=True)
class Forest:
    """Named differences, from the top down."""

    title: str
    """What it shows, for those who hear it."""
    x_label: str
    """With the unit."""
    rows: tuple[tuple[str, Interval], ...]
    """Name and difference."""


def render_forest(forest: Forest, width: int) -> str:
    """The plot as an <svg> element that takes its colours from the page.

    Rows that better the reference are blue, worse ones vermilion, those whose interval holds zero grey. In a narrow
    plot each name stands above its row.
    """
    narrow = width < 480
    row = ROW + 14 if narrow else ROW
    left = 8 if narrow else 16 + max(round(7.4 * len(name)) for name, _ in forest.rows)
    right = 8 if narrow else 70
    height = _TOP + row * len(forest.rows) + _BOTTOM
    ends = [0.0, *(end for _, gap in forest.rows for end in (gap.mean, gap.low, gap.high) if end is not None)]
    x = Scale(*with_room(ends, 0.06, 0.06), width - left - right)
    parts = [
        f'<text x="{width - right}" y="{height - 6}" text-anchor="end">{svg_text(forest.x_label)}</text>',
        f'<g transform="translate({left} {_TOP})">',
        *upright_grid(x, max(3, round(x.length / 70)), 0, row * len(forest.rows)),
        *(_row(name, gap, x, row * i, row, narrow) for i, (name, gap) in enumerate(forest.rows)),
    ]
    return figure(forest.title, width, height, [*parts, "</g>"])


def _row(name: str, gap: Interval, x: Scale, top: float, row: float, narrow: bool) -> str:
    known = gap.low is not None and gap.high is not None
    colour = "var(--s5)" if gap.holds_zero or not known else "var(--s0)" if gap.mean < 0 else "var(--s1)"
    middle = top + (row - 11 if narrow else row / 2)
    label = (
        f'<text x="0" y="{top + 13}">{svg_text(name)}</text>'
        if narrow
        else f'<text x="-10" y="{middle + 4}" text-anchor="end">{svg_text(name)}</text>'
        f'<text class="note" x="{x.length + 8}" y="{middle + 4}">{formats.signed(gap.mean)}</text>'
    )
    hover = f"{name}: {formats.signed(gap.mean)} ({formats.interval(gap.low, gap.high)})"
    span = (
        f'<line class="span" x1="{x(gap.low)}" x2="{x(gap.high)}" y1="{middle}" y2="{middle}"/>'
        if gap.low is not None and gap.high is not None
        else ""
    )
    dot = f'<circle class="dot" cx="{x(gap.mean)}" cy="{middle}" r="4.5"/>'
    return f'{label}<g style="--c:{colour}"><title>{svg_text(hover)}</title>{span}{dot}</g>'


def forest_of(gaps: Sequence[tuple[str, Interval]]) -> Forest:
    """The plot of differences in held-out loss."""
    return Forest(
        title="Differences in held-out loss at equal tokens, with 95 % intervals",
        x_label="nats per token; below zero is better",
        rows=tuple(gaps),
    )
