"""Line charts as small self-contained SVG, light and dark through CSS variables, readable by screen readers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from widestream.files import write_page
from widestream.report.figures.scales import Scale, linear_ticks, log_ticks
from widestream.report.formats import ticks, visible

THEMES = {
    "light": {
        "paper": "#ffffff", "ink": "#1c1f23", "soft": "#5d646d", "rule": "#e4e6e9", "panel": "#f6f7f8",
        "warn": "#8a4b00", "warn-paper": "#fff4e3",
        "s0": "#0067a8", "s1": "#c2500a", "s2": "#00805c", "s3": "#a4437f", "s4": "#8a6a00", "s5": "#5a5f66",
    },
    "dark": {
        "paper": "#15181c", "ink": "#e8eaed", "soft": "#a0a7b0", "rule": "#2b3036", "panel": "#1c2025",
        "warn": "#ffc46b", "warn-paper": "#33260f",
        "s0": "#5fb2f2", "s1": "#ff9152", "s2": "#46c9a0", "s3": "#e39bc8", "s4": "#e0bd45", "s5": "#b3b9c1",
    },
}  # fmt: skip
"""CSS variables by theme. s0, s1, ... are the series: blue and vermilion first, told apart by every kind of eye."""

_COLOURS = 6
_FEW = 12
"""Up to so many points, each is shown as a dot: there is more line than measurement."""

_HOVERS = 60
"""Most points of a line that carry a hover title; more would only weigh."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line."""

    points: tuple[tuple[float, float], ...]
    """(x, y) in order of x."""
    colour: int
    """Number of the model; picks the colour."""
    label: str | None = None
    """Name at the line's end and in the legend; None for a line that needs none."""
    value: str = ""
    """Figure after the name at the line's end."""
    thick: bool = True
    """A mean (thick) or one seed (thin)."""
    band: tuple[tuple[float, float, float], ...] = ()
    """(x, low, high) of a shaded band."""
    titles: tuple[str, ...] = ()
    """Hover text of each point; empty for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guide:
    """A dashed line at one height from one curve to the other, dropped to the axis, with what it says."""

    y: float
    """Height."""
    start: float
    """x where the nearer curve crosses."""
    end: float
    """x where the farther curve crosses."""
    text: str
    """Short."""
    colour: int
    """Model that crosses first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A point of a line worth naming."""

    x: float
    """Place."""
    y: float
    """Place."""
    text: str
    """What is said of it, to the right."""
    colour: int
    """Model."""
    above: bool = False
    """Whether the words stand above the line, as they must where it falls, or below."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A line chart."""

    title: str
    """What it shows, for those who hear it."""
    x_label: str
    """With the unit."""
    y_label: str
    """With the unit."""
    series: tuple[Series, ...]
    """Lines, painted in order."""
    y_range: tuple[float, float]
    """Lowest and highest y shown; lines are cut there."""
    log_x: bool = False
    """Logarithmic x axis."""
    guide: Guide | None = None
    """A horizontal reading."""
    marks: tuple[Mark, ...] = ()
    """Named points."""
    zero: bool = False
    """Draw a line at zero."""


def render(chart: Chart, width: int, height: int) -> str:
    """The chart as an <svg> element that takes its colours from the page.

    Names stand at the line ends; below 480 units of width they form a legend instead.
    """
    compact = width < 480
    named = [series for series in chart.series if series.label]
    legend, rows = _legend(named, width) if compact else ("", 0)
    left, top, bottom = 46, 33 + 17 * rows, 44
    right = 14 if compact else 16 + max((_text_width(_end_text(series)) for series in named), default=0)
    inner_width, inner_height = width - left - right, height - top - bottom
    x, y = _scales(chart, inner_width, inner_height)
    parts = [
        f'<text x="0" y="14">{svg_text(chart.y_label)}</text>',
        f'<text x="{left + inner_width}" y="{height - 6}" text-anchor="end">',
        f"{svg_text(chart.x_label)}</text>",
        legend,
        f'<g transform="translate({left} {top})">',
        _axes(chart, x, y, inner_width, inner_height),
        f'<svg width="{inner_width}" height="{inner_height}" overflow="hidden">',
        *(_line(series, x, y) for series in chart.series),
        "</svg>",
        _guide(chart.guide, x, y) if chart.guide else "",
        *(_spots(series, x, y) for series in chart.series),
        _marks(chart.marks, x, y),
        _ends(named, x, y),
        "" if compact else _names(named, y, inner_width, inner_height),
        *(_hovers(series, x, y, inner_height) for series in chart.series),
        "</g>",
    ]
    return figure(chart.title, width, height, parts)


def figure(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    """What is drawn, as an <svg> element of a size that takes its colours from the page."""
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{svg_text(title)}">{"".join(parts)}</svg>'
    )


def upright_grid(x: Scale, most: int, top: float, floor: float) -> list[str]:
    """Lines at round numbers of an x axis, the one at zero heavier, and the numbers below."""
    parts, marks = [], linear_ticks(x.low, x.high, most)
    for mark, name in zip(marks, ticks(marks), strict=True):
        kind = "zero" if abs(mark) < 1e-9 else "grid"
        parts.append(f'<line class="{kind}" x1="{x(mark)}" x2="{x(mark)}" y1="{top}" y2="{floor}"/>')
        parts.append(f'<text x="{x(mark)}" y="{floor + 17}" text-anchor="middle">{name}</text>')
    return parts


def svg_text(words: str) -> str:
    """Words of any origin as they may stand in an element or an attribute."""
    return escape(visible(words))


def css_variables(theme: str) -> str:
    """The CSS variables of a theme."""
    return "".join(f"--{name}:{value};" for name, value in THEMES[theme].items())


@cache
def chart_css() -> str:
    """The style sheet of the charts."""
    return files("widestream.report").joinpath("templates/chart.css").read_text(encoding="utf-8")


def write_both(stem: str | Path, panels: Sequence[str], width: int, height: int, title: str) -> tuple[Path, Path]:
    """Write STEM-light.svg and STEM-dark.svg: rendered charts, each `width` by `height`, beside each other.

    Returns:
        Both paths.

    Raises:
        UserError: nowhere to write.
    """
    light, dark = (Path(f"{stem}-{theme}.svg") for theme in ("light", "dark"))
    for path, theme in ((light, "light"), (dark, "dark")):
        write_page(path, standalone(panels, width, height, theme, title))
    return light, dark


def write_charts(
    stem: str | Path, charts: Sequence[Chart], title: str, width: int = 520, height: int = 330
) -> tuple[Path, Path]:
    """Write line charts beside each other as STEM-light.svg and STEM-dark.svg; see `write_both`."""
    return write_both(stem, [render(chart, width, height) for chart in charts], width, height, title)


def standalone(panels: Sequence[str], width: int, height: int, theme: str, title: str) -> str:
    """Rendered charts, each `width` by `height`, beside each other as one SVG file in the colours of one theme."""
    gutter = 32
    whole = len(panels) * width + (len(panels) - 1) * gutter
    placed = "".join(
        f'<g transform="translate({i * (width + gutter)} 0)">{panel}</g>' for i, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 -8 {whole + 24} {height + 16}" role="img" '
        f'aria-label="{svg_text(title)}"><style>svg{{{css_variables(theme)}}}{chart_css()}</style>{placed}</svg>\n'
    )


def _scales(chart: Chart, width: float, height: float) -> tuple[Scale, Scale]:
    xs = [x for series in chart.series for x, _ in series.points]
    low = min(xs) if chart.log_x else 0.0
    return Scale(low, max(xs), width, log=chart.log_x), Scale(*chart.y_range, height, flipped=True)


def _axes(chart: Chart, x: Scale, y: Scale, width: float, height: float) -> str:
    """Horizontal grid, tick labels, base line; the zero line where asked for."""
    parts = []
    y_ticks = linear_ticks(*chart.y_range, max(3, round(height / 48)))
    for tick, name in zip(y_ticks, ticks(y_ticks), strict=True):
        parts.append(f'<line class="grid" x1="0" x2="{width}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text x="-8" y="{y(tick) + 4:.1f}" text-anchor="end">{name}</text>')
    x_ticks = (log_ticks if chart.log_x else linear_ticks)(x.low, x.high, max(3, round(width / 75)))
    for tick, name in zip(x_ticks, [f"{tick:g}" for tick in x_ticks] if chart.log_x else ticks(x_ticks), strict=True):
        parts.append(f'<line class="base" x1="{x(tick)}" x2="{x(tick)}" y1="{height}" y2="{height + 4}"/>')
        parts.append(f'<text x="{x(tick)}" y="{height + 18}" text-anchor="middle">{name}</text>')
    parts.append(f'<line class="base" x1="0" x2="{width}" y1="{height}" y2="{height}"/>')
    if chart.zero:
        parts.append(f'<line class="zero" x1="0" x2="{width}" y1="{y(0)}" y2="{y(0)}"/>')
    return "".join(parts)


def _line(series: Series, x: Scale, y: Scale) -> str:
    band = ""
    if series.band:
        edge = [(x(at), y(high)) for at, _, high in series.band] + [
            (x(at), y(low)) for at, low, _ in reversed(series.band)
        ]
        band = f'<polygon class="band" points="{_points(edge)}"/>'
    path = _points([(x(at), y(value)) for at, value in series.points])
    weight = "thick" if series.thick else "thin"
    return f'<g style="--c:{_colour(series.colour)}">{band}<polyline class="line {weight}" points="{path}"/></g>'


def _spots(series: Series, x: Scale, y: Scale) -> str:
    """Dots on the points of a mean of few points."""
    if not series.thick or len(series.points) > _FEW:
        return ""
    inside = [(at, value) for at, value in series.points if y.low <= value <= y.high]
    dots = "".join(f'<circle class="spot" cx="{x(at)}" cy="{y(value)}" r="3"/>' for at, value in inside)
    return f'<g style="--c:{_colour(series.colour)}">{dots}</g>'


def _marks(marks: Sequence[Mark], x: Scale, y: Scale) -> str:
    parts = []
    for mark in marks:
        at_x, at_y = x(mark.x), y(mark.y)
        level = at_y + (-8 if mark.above else 16)
        parts.append(
            f'<circle class="hollow" style="--c:{_colour(mark.colour)}" cx="{at_x}" cy="{at_y}" r="4"/>'
            f'<text class="note" x="{at_x + 7}" y="{level:.1f}">{svg_text(mark.text)}</text>'
        )
    return "".join(parts)


def _ends(named: Sequence[Series], x: Scale, y: Scale) -> str:
    """A dot at the end of every named line."""
    ends = [(_colour(series.colour), *series.points[-1]) for series in named]
    return "".join(
        f'<circle class="dot" style="--c:{colour}" cx="{x(at)}" cy="{y(value)}" r="4.5"/>' for colour, at, value in ends
    )


def _names(named: Sequence[Series], y: Scale, width: float, height: float) -> str:
    """Names at the right edge, at the heights of the line ends, moved apart if they would overlap."""
    places = _apart([y(series.points[-1][1]) for series in named], 17, height)
    return "".join(
        f'<text class="label" style="--c:{_colour(series.colour)}" x="{width + 10}" y="{place + 4:.1f}">'
        f"{svg_text(_end_text(series))}</text>"
        for series, place in zip(named, places, strict=True)
    )


def _legend(named: Sequence[Series], width: float) -> tuple[str, int]:
    """Names in rows above the plot, for charts too narrow for names at the line ends; and how many rows."""
    parts, at, row = [], 0.0, 0
    for series in named:
        text = _end_text(series)
        if at and at + _text_width(text) > width:
            at, row = 0.0, row + 1
        place = f'x="{at}" y="{34 + 17 * row}"'
        parts.append(f'<text class="label" style="--c:{_colour(series.colour)}" {place}>{svg_text(text)}</text>')
        at += _text_width(text) + 14
    return "".join(parts), row + 1


def _guide(guide: Guide, x: Scale, y: Scale) -> str:
    start, end, level, floor = x(guide.start), x(guide.end), y(guide.y), y.length
    left = start > 0.45 * x.length
    return (
        f'<path class="guide" d="M{start} {floor}V{level}H{end}V{floor}"/>'
        f'<circle class="hollow" style="--c:{_colour(guide.colour)}" cx="{start}" cy="{level}" r="4"/>'
        f'<text class="note" x="{start - 7 if left else start + 7}" y="{floor - 8}" '
        f'text-anchor="{"end" if left else "start"}">{svg_text(guide.text)}</text>'
    )


def _hovers(series: Series, x: Scale, y: Scale, height: float) -> str:
    """Invisible discs that show a point's figures under the pointer."""
    every = max(1, math.ceil(len(series.titles) / _HOVERS))
    discs = [
        f'<circle class="hit" cx="{x(at)}" cy="{y(value)}" r="6"><title>{svg_text(title)}</title></circle>'
        for (at, value), title in list(zip(series.points, series.titles, strict=False))[::-every]
        if 0 <= y(value) <= height
    ]
    return f'<g style="--c:{_colour(series.colour)}">{"".join(discs)}</g>' if discs else ""


def _apart(places: Sequence[float], distance: float, height: float) -> list[float]:
    """Move places apart to at least a distance, keeping their order, within [0, height] as far as there is room."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + distance)
    ceiling = height
    for i in reversed(order):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - distance
    return moved


def _end_text(series: Series) -> str:
    name = series.label or ""
    return f"{name if len(name) <= 24 else name[:23] + '…'} {series.value}".strip()


def _text_width(text: str) -> int:
    """Width in units at 13 px, semi-bold, on the safe side."""
    return math.ceil(7.8 * len(text))


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _colour(number: int) -> str:
    return f"var(--s{number % _COLOURS})"
