"""Line charts as Vega-Lite specifications: plain dictionaries, drawn by a page's scripts or into a file.

Lines are kept apart from the specification, as columns (`Lines`), so that a page holds what charts share once. In rows,
as a specification reads them: `m` model, `s` seed, `k` line, `x`, `y`, `c` colour, `d` dash, `t` 1 for a mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from textwrap import wrap
from typing import Any

from widestream.report.figures.chart import Chart, Guide, Mark, Series
from widestream.report.figures.names import shorten
from widestream.report.figures.themes import BROKEN, NUMBERS, colour_scale, dash_scale, log_numbers, look
from widestream.report.figures.thin import room_for_each, thinned
from widestream.report.formats import visible

Spec = dict[str, Any]
"""A Vega-Lite specification, or a part of one."""

FEW = 12
"""Up to so many points, each is shown as a dot: there is more line than measurement."""
LABELS = 8
"""More lines than these are named in the legend alone."""
LETTERS = 20
"""Longest name at the end of a line, its figure not counted."""
MANY = 12
"""More lines than these are thinner."""
_DIGIT = 7
"""Width of a digit beside an axis."""
_APART = 16
"""Distance of names at the ends of lines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large a chart is, in pixels; a page sets the width to the room that there is."""

    width: int = 420
    """Of the plot, without names and numbers around it."""
    height: int = 280
    """Of the plot."""
    words: bool = True
    """Whether axes and line ends are named; where not, what stands around the chart names them."""


_HOLLOW: Spec = {
    "type": "point",
    "size": 55,
    "filled": False,
    "fill": "var(--paper)",
    "strokeWidth": 2,
    "opacity": 1,
    "clip": True,
}


WIDE, SMALL = Size(), Size(width=190, height=130, words=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lines:
    """A chart, ready to be drawn."""

    spec: Spec
    """The specification, without its lines."""
    series: list[dict[str, Any]]
    """Lines as columns."""
    logs: dict[str, Spec | None]
    """Range and numbers of each axis when it is logarithmic; None where it cannot be."""
    margin: dict[str, int]
    """Room around the plot: left for numbers, above for the chart's name, below for the axis. A page's
    script adds room for names, which it can measure."""
    cut: bool
    """Whether lines are drawn through some of their points only."""


def line_spec(chart: Chart, size: Size = WIDE, interactive: bool = True) -> Lines:
    """The chart as a specification.

    Args:
        chart: what it shows.
        size: how large.
        interactive: whether it answers to a reader: hiding, zoom, what lies under the pointer.
    """
    lines = [_finite(series) for series in chart.series]
    most = room_for_each(len(lines))
    kept = [_fewer(series, most) for series in lines]
    axes = _Axes.of(chart, kept)
    ends = _ends(kept, axes, size) if size.words else []
    hiding = [{"filter": "indexof(hidden, datum.m) < 0"}] if interactive else []
    layers = [
        *([_rule_at_zero()] if chart.zero else []),
        *_line_layers(kept, hiding),
        *_guide_layers(chart.guide, axes),
        *_mark_layers(chart.marks, axes, _seeds(hiding)),
        *_end_layers(ends, hiding, interactive),
    ]
    if not any(series.points for series in kept):
        layers.append(_words_in_the_middle("no points to draw", size))
    if interactive:
        layers += _pointer_layers()
        frame = next(layer for layer in layers if layer["data"] == {"name": "lines"})
        frame["params"] = [_zoom()]
    spec: Spec = {
        "width": size.width,
        "height": size.height,
        "layer": layers,
        "encoding": {"x": axes.x(chart, size), "y": axes.y(size)},
    }
    top = 8
    if size.words:
        name = wrap(visible(chart.y_label), 44) or [""]
        spec["title"], top = {"text": name, "lineHeight": 17}, 14 + 17 * len(name)
    if interactive:
        spec["params"] = [{"name": "hidden", "value": []}, {"name": "seeds", "value": True}]
    return Lines(
        spec=spec,
        series=[_columns(series) for series in kept],
        logs={
            axis: {"domain": domain, "numbers": log_numbers(*domain)} if domain else None
            for axis, domain in (("x", axes.log_x), ("y", axes.log_y))
        },
        margin={"left": axes.numbers(), "top": top, "right": 14, "bottom": 44 if size.words else 22},
        cut=any(len(a.points) < len(b.points) for a, b in zip(kept, lines, strict=True)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Axes:
    """Where numbers lie."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: list[float] | None
    """Range of a logarithmic axis; None where there is something that has no logarithm."""
    log_y: list[float] | None
    log: bool
    """Whether the x axis starts as a logarithmic one."""

    @classmethod
    def of(cls, chart: Chart, lines: Sequence[Series]) -> "_Axes":
        xs = [x for series in lines for x, _ in series.points]
        ys = [y for series in lines for _, y in series.points]
        x_range = chart.x_range or (min(0.0, *xs), max(xs)) if xs else (0.0, 1.0)
        positive = [x for x in xs if x_range[0] <= x <= x_range[1]]
        log_x = None
        if positive and min(positive) > 0:
            log_x = list(_wide((min(positive), max(positive))))
        low, high = y_range = _wide(chart.y_range)
        log_y = [max(low, 0.98 * min(ys)), high] if ys and 0 < min(ys) < high else None
        return cls(x_range=_wide(x_range), y_range=y_range, log_x=log_x, log_y=log_y, log=chart.log_x and bool(log_x))

    def x(self, chart: Chart, size: Size) -> Spec:
        """The x channel."""
        title = visible(chart.x_label) if size.words else None
        domain = self.log_x if self.log else self.x_range
        return _channel("x", domain, self.log, title=title, grid=False, tickCount=max(3, size.width // 75))

    def y(self, size: Size) -> Spec:
        """The y channel; the chart's own title names it."""
        return _channel("y", self.y_range, False, title=None, tickCount=max(3, size.height // 48))

    def numbers(self) -> int:
        """Width of the numbers beside the y axis."""
        low, high = self.y_range
        behind = max(0, math.ceil(-math.log10((high - low) / 6)))
        before = len(f"{max(abs(low), abs(high)):.0f}")
        return 20 + round(_DIGIT * (before + behind + (behind > 0) + (low < 0)))

    def part(self, x: float) -> float:
        """How far to the right a number lies, from 0 to 1."""
        if self.log and self.log_x:
            low, high = self.log_x
            return math.log(max(x, low) / low) / math.log(high / low)
        low, high = self.x_range
        return (x - low) / (high - low)


def _wide(ends: tuple[float, float]) -> tuple[float, float]:
    """A range that has a width; one around zero where it is none of finite numbers."""
    low, high = ends
    if not (math.isfinite(low) and math.isfinite(high)):
        return 0.0, 1.0
    if low < high:
        return low, high
    return (low / 1.5, low * 1.5) if low > 0 else (low - 0.5, low + 0.5)


def _channel(field: str, domain: Sequence[float] | None, log: bool, **axis: Any) -> Spec:
    domain = list(domain or (0.0, 1.0))
    scale = {"domain": domain, "type": "log" if log else "linear", "nice": False}
    numbers = log_numbers(domain[0], domain[1]) if log else NUMBERS
    return {
        "field": field,
        "type": "quantitative",
        "scale": scale,
        "axis": {"labelExpr": numbers, "labelOverlap": "greedy", **axis},
    }


def _line_layers(lines: Sequence[Series], hiding: list[Spec]) -> list[Spec]:
    """Bands under the lines of seeds under the lines of means; dots on lines of few points."""
    encoding = {
        "color": _colour(),
        "strokeDash": {"field": "d", "type": "nominal", "scale": dash_scale(), "legend": None},
        "detail": {"field": "k", "type": "nominal"},
    }

    def layer(mark: Spec, which: str) -> Spec:
        transform = [*_seeds(hiding), {"filter": which}]
        return {"data": {"name": "lines"}, "transform": transform, "mark": mark, "encoding": encoding}

    line = {"type": "line", "clip": True, "strokeJoin": "round"}
    layers = [
        layer(line | {"strokeWidth": 1, "opacity": 0.55}, "datum.t == 0"),
        layer(line | {"strokeWidth": 2.5 if sum(series.thick for series in lines) <= MANY else 1.5}, "datum.t == 1"),
    ]
    if any(_dotted(series) for series in lines):
        dots = layer({"type": "circle", "size": 36, "opacity": 1, "clip": True}, "datum.f == 1")
        layers.append(dots | {"encoding": {"color": _colour()}})
    if any(series.band for series in lines):
        edge = {"type": "quantitative"}
        band = {
            "data": {"name": "bands"},
            "transform": hiding,
            "mark": {"type": "area", "opacity": 0.16, "clip": True},
            "encoding": {
                "y": {"field": "lo", **edge, "title": None},
                "y2": {"field": "hi"},
                "color": _colour(),
                "detail": {"field": "k", "type": "nominal"},
            },
        }
        layers.insert(0, band)
    return layers


def _seeds(hiding: list[Spec]) -> list[Spec]:
    """What hides models, and single seeds with it."""
    return [*hiding, {"filter": "seeds || datum.s == ''"}] if hiding else []


def _dotted(series: Series) -> bool:
    """Whether each of its points is a dot."""
    return len(series.points) == 1 or (series.thick and len(series.points) <= FEW)


def _rule_at_zero() -> Spec:
    return {
        "data": {"values": [{"y": 0}]},
        "mark": {"type": "rule", "color": "var(--ink)", "clip": True},
        "encoding": {"x": {"value": 0}, "x2": {"value": "width"}},
    }


def _guide_layers(guide: Guide | None, axes: _Axes) -> list[Spec]:
    if guide is None:
        return []
    floor, left = axes.y_range[0], axes.part(guide.start) > 0.45
    corners = [(guide.start, floor), (guide.start, guide.y), (guide.end, guide.y), (guide.end, floor)]
    point = {"x": guide.start, "y": guide.y, "c": look(guide.colour)[0]}
    words = {"align": "right", "dx": -7} if left else {"align": "left", "dx": 7}
    text = wrap(visible(guide.text), 28)
    return [
        {
            "data": {"values": [{"x": x, "y": y, "o": order} for order, (x, y) in enumerate(corners)]},
            "mark": {"type": "line", "strokeDash": [2, 3], "strokeWidth": 1, "color": "var(--ink)", "clip": True},
            "encoding": {"order": {"field": "o", "type": "quantitative"}},
        },
        {"data": {"values": [point]}, "mark": _HOLLOW, "encoding": {"stroke": _colour()}},
        {
            "data": {"values": [point | {"text": text}]},
            "mark": {
                "type": "text",
                "dy": 7 - 16 * len(text),
                "lineHeight": 16,
                "fontSize": 13,
                "color": "var(--ink)",
                "clip": True,
                **words,
            },
            "encoding": {"y": {"value": "height"}, "text": {"field": "text", "type": "nominal"}},
        },
    ]


def _mark_layers(marks: Sequence[Mark], axes: _Axes, hiding: list[Spec]) -> list[Spec]:
    marks = [mark for mark in marks if math.isfinite(mark.x) and math.isfinite(mark.y)]
    if not marks:
        return []
    rows = [
        {
            "m": visible(mark.model),
            "s": visible(mark.seed),
            "x": mark.x,
            "y": mark.y,
            "c": look(mark.colour)[0],
            "text": visible(mark.text),
            "align": "left" if axes.part(mark.x) < 0.6 else "right",
            "dx": 7 if axes.part(mark.x) < 0.6 else -7,
            "dy": -11 if mark.above else 13,
        }
        for mark in marks
    ]
    words = {name: {"expr": f"datum.{name}"} for name in ("align", "dx", "dy")}
    return [
        {
            "data": {"values": rows},
            "transform": hiding,
            "mark": _HOLLOW,
            "encoding": {"stroke": _colour()},
        },
        {
            "data": {"values": rows},
            "transform": hiding,
            "mark": {"type": "text", "fontSize": 13, "color": "var(--ink)", "clip": True, **words},
            "encoding": {"text": {"field": "text", "type": "nominal"}},
        },
    ]


def _ends(lines: Sequence[Series], axes: _Axes, size: Size) -> list[Spec]:
    """Names at the ends of lines; none where they are too many to stand apart."""
    named = [series for series in lines if series.label and series.points]
    if not named or len(named) > min(LABELS, size.height // _APART):
        return []
    short = shorten([visible(series.label or "") for series in named], LETTERS)
    texts = [f"{short[visible(series.label or '')]} {series.value}".strip() for series in named]
    rows: list[Spec] = []
    for series, text in zip(named, texts, strict=True):
        (x, y), (colour, _) = series.points[-1], look(series.colour)
        rows.append({"m": visible(series.name), "c": colour, "x": x, "y": y, "text": text})
    for place, domain, log in (("place", axes.y_range, False), ("log_place", axes.log_y, True)):
        if domain is not None:
            for row, at in zip(rows, _apart([row["y"] for row in rows], domain, log, size.height), strict=True):
                row[place] = at
    return rows


def _apart(values: Sequence[float], domain: Sequence[float], log: bool, height: int) -> list[float]:
    """Values moved so that names beside them do not overlap, in their order and inside of the frame."""
    low, high = (math.log(end) if log else end for end in domain)

    def pixel(value: float) -> float:
        value = math.log(max(value, 1e-300)) if log else value
        return min(max((value - low) / (high - low), 0.0), 1.0) * height

    places = [pixel(value) for value in values]
    order = sorted(range(len(places)), key=places.__getitem__)
    for before, after in pairwise(order):
        places[after] = max(places[after], places[before] + _APART)
    ceiling = float(height)
    for i in reversed(order):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - _APART
    moved = [low + place / height * (high - low) for place in places]
    return [math.exp(value) if log else value for value in moved]


def _end_layers(rows: list[Spec], hiding: list[Spec], interactive: bool) -> list[Spec]:
    """A dot at the end of every named line, and its name right of the frame; gone where zoom leaves them outside."""
    if not rows:
        return []

    def inside(field: str, axis: str) -> list[Spec]:
        if not interactive:
            return []
        return [{"filter": f"!zoom.{axis} || inrange(datum.{field}, zoom.{axis})"}]

    data = {"values": rows}
    return [
        {
            "data": data,
            "transform": [*hiding, *inside("x", "x"), *inside("y", "y")],
            "mark": {"type": "circle", "size": 64, "opacity": 1, "stroke": "var(--paper)", "clip": False},
            "encoding": {"color": _colour()},
        },
        {
            "name": "ends",
            "data": data,
            "transform": [*hiding, *inside("place", "y")],
            "mark": {"type": "text", "align": "left", "dx": 10, "fontSize": 13, "fontWeight": 600, "clip": False},
            "encoding": {
                "x": {"value": "width"},
                "y": {"field": "place", "type": "quantitative", "title": None},
                "text": {"field": "text", "type": "nominal"},
                "color": _colour(),
            },
        },
    ]


def _words_in_the_middle(words: str, size: Size) -> Spec:
    return {
        "data": {"values": [{}]},
        "mark": {"type": "text", "text": words, "color": "var(--soft)", "fontSize": 13},
        "encoding": {"x": {"value": size.width / 2}, "y": {"value": size.height / 2}},
    }


def _pointer_layers() -> list[Spec]:
    """A hair line and a ring on the point that lies under the pointer; a page's script fills the data."""
    data = {"name": "hover"}
    return [
        {
            "data": data,
            "mark": {"type": "rule", "color": "var(--rule)"},
            "encoding": {"y": {"value": 0}, "y2": {"value": "height"}},
        },
        {"data": data, "mark": _HOLLOW | {"size": 90}, "encoding": {"stroke": _colour()}},
    ]


def _zoom() -> Spec:
    """Wheel and drag; a double click shows all again."""
    return {"name": "zoom", "select": "interval", "bind": "scales"}


def _colour() -> Spec:
    return {"field": "c", "type": "nominal", "scale": colour_scale(), "legend": None}


def _finite(series: Series) -> Series:
    """A line without the points that cannot be drawn."""
    kept = [i for i, point in enumerate(series.points) if all(map(math.isfinite, point))]
    return series if len(kept) == len(series.points) else _only(series, kept)


def _fewer(series: Series, most: int) -> Series:
    """A line of at most so many points."""
    kept = thinned([y for _, y in series.points], most)
    return series if len(kept) == len(series.points) else _only(series, kept)


def _only(series: Series, kept: Sequence[int]) -> Series:
    """Some points of a line, and what belongs to them."""
    xs = {series.points[i][0] for i in kept}
    return replace(
        series,
        points=tuple(series.points[i] for i in kept),
        titles=tuple(series.titles[i] for i in kept) if series.titles else (),
        measured=tuple(series.measured[i] for i in kept) if series.measured else (),
        band=tuple(edge for edge in series.band if edge[0] in xs),
    )


def _columns(series: Series) -> Spec:
    """A line as columns: `x`, `y`, and where it has them `o` (as measured), `n` (names of points) and `band`."""
    colour, dash = look(series.colour)
    columns: Spec = {
        "m": visible(series.name),
        "s": visible(series.seed),
        "c": colour,
        "d": BROKEN if series.broken else dash,
        "t": int(series.thick),
        "f": int(_dotted(series)),
        "x": [_short(x) for x, _ in series.points],
        "y": [_short(y) for _, y in series.points],
    }
    if series.measured:
        columns["o"] = [_short(value) for value in series.measured]
    if series.titles:
        columns["n"] = [visible(title) for title in series.titles]
    if series.band:
        columns["band"] = {name: [_short(edge[i]) for edge in series.band] for i, name in enumerate(("x", "lo", "hi"))}
    return columns


def _short(value: float) -> float:
    """Six digits: more than are seen, in half of the room."""
    return float(f"{value:.6g}")


def datasets(series: Sequence[Spec]) -> dict[str, list[Spec]]:
    """Lines as the rows that a specification reads; a page's script does the same."""
    lines: list[Spec] = []
    bands: list[Spec] = []
    for number, columns in enumerate(series):
        same = {name: columns[name] for name in "mscdtf"} | {"k": number}
        lines += [{**same, "x": x, "y": y} for x, y in zip(columns["x"], columns["y"], strict=True)]
        if "band" in columns:
            band = columns["band"]
            edges = zip(band["x"], band["lo"], band["hi"], strict=True)
            bands += [{**same, "x": x, "lo": low, "hi": high} for x, low, high in edges]
    return {"lines": lines, "bands": bands}
