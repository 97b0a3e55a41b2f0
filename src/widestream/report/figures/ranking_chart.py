"""The ranking of a league: a row a model, and where its loss lies beside the reference's, one panel a resource."""

from dataclasses import dataclass

from widestream.report import formats
from widestream.report.comparison import Comparison
from widestream.report.figures.scales import Scale
from widestream.report.figures.svg import figure, svg_text, upright_grid
from widestream.report.league import EQUAL, ranked
from widestream.report.stats.matched import Resource
from widestream.report.stats.pairs import Pair
from widestream.report.verdict import METRIC_NAMES

ROW, TOP, BOTTOM, NAMES, GUTTER = 17, 40, 26, 186, 26
"""Units: height of a row, room above and below the rows, width of the names, room between panels."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ranking of a league, to be drawn."""

    comparison: Comparison
    """The models."""


def render_ranking(comparison: Comparison, resources: tuple[Resource, ...], width: int) -> tuple[str, int]:
    """The ranking as an <svg> element `width` units wide, and its height.

    Dots are means over seeds, lines their 95 % intervals. All panels have one scale; what
    lies beyond (a model far behind) is drawn at the edge as an arrow with its figure.
    """
    pairs = ranked(comparison)
    height = TOP + ROW * len(pairs) + BOTTOM
    room = (width - NAMES - GUTTER * (len(resources) - 1) - 14) / len(resources)
    low, high = _range(pairs, resources)
    names = "".join(
        f'<text class="note" x="{NAMES - 12}" y="{_y(i) + 4}" text-anchor="end">'
        f"{svg_text(_short(pair.other.label))}</text>"
        for i, pair in enumerate(pairs)
    )
    panels = "".join(
        f'<g transform="translate({NAMES + i * (room + GUTTER):.1f} 0)">'
        f"{_panel(pairs, resource, Scale(low, high, room), height)}</g>"
        for i, resource in enumerate(resources)
    )
    metric, reference = METRIC_NAMES[comparison.metric], comparison.groups[0].label
    title = f"{metric} of {len(pairs)} models minus that of {reference}"
    heading = f'<text x="0" y="14">{svg_text(_short(title, 70))}</text>'
    return figure(title, width, height, [heading, names, panels]), height


def _range(pairs: list[Pair], resources: tuple[Resource, ...]) -> tuple[float, float]:
    """From the best to the worst model, or to twice the best one's lead where some are far behind."""
    means = [
        0.0,
        *(pair.at_equal[resource].mean for pair in pairs for resource in resources if resource in pair.at_equal),
    ]
    lead = max(-min(means), 0.02)
    high = min(max(*means, 0.25 * lead), 1.25 * lead)
    return -1.08 * lead, high + 0.12 * lead


def _panel(pairs: list[Pair], resource: Resource, x: Scale, height: int) -> str:
    heading = f'<text class="note" x="0" y="{TOP - 10}">{EQUAL[resource].partition(" (")[0]}</text>'
    grid = upright_grid(x, max(3, round(x.length / 45)), TOP, height - BOTTOM)
    rows = (_row(pair, resource, x, _y(i)) for i, pair in enumerate(pairs))
    return "".join([heading, *grid, *rows])


def _row(pair: Pair, resource: Resource, x: Scale, y: float) -> str:
    if resource not in pair.at_equal:
        return ""
    interval = pair.at_equal[resource]
    colour = "var(--s5)" if interval.holds_zero else "var(--s0)" if interval.mean < 0 else "var(--s1)"
    hover = f"{pair.other.label}, {EQUAL[resource].lower()}: {formats.signed(interval.mean)}"
    if interval.low is not None:
        hover += f" ({formats.interval(interval.low, interval.high)})"
    if interval.mean > x.high:
        arrow = f'<text x="{x.length}" y="{y + 4}" text-anchor="end">{formats.signed(interval.mean)} →</text>'
        return f"<g><title>{svg_text(hover)}</title>{arrow}</g>"
    line = ""
    if interval.low is not None and interval.high is not None:
        ends = [x(min(max(end, x.low), x.high)) for end in (interval.low, interval.high)]
        line = f'<line class="span" x1="{ends[0]}" x2="{ends[1]}" y1="{y}" y2="{y}"/>'
    stem = f'<line class="stem" x1="{x(0)}" x2="{x(interval.mean)}" y1="{y}" y2="{y}"/>'
    dot = f'<circle class="dot" cx="{x(interval.mean)}" cy="{y}" r="4.5"/>'
    return f'<g style="--c:{colour}"><title>{svg_text(hover)}</title>{stem}{line}{dot}</g>'


def _y(row: int) -> float:
    """Middle of a row."""
    return TOP + ROW * (row + 0.5)


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
