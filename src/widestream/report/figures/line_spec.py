"""Line charts as Vega-Lite specifications: plain dictionaries, drawn by a page's scripts or into a file.

Lines are kept apart from it (`columns.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import wrap
from typing import Any

from widestream.report.figures.axes import WIDE, Axes, Size, Spec
from widestream.report.figures.chart import Chart, Guide, Mark, Series
from widestream.report.figures.columns import columns_of, dotted, fewer, finite
from widestream.report.figures.names import shorten
from widestream.report.figures.themes import colour_scale, dash_scale, log_numbers, look
from widestream.report.figures.thin import room_for_each
from widestream.report.formats import visible

LABELS = 8
"""More lines than these are named in the legend alone."""
LETTERS = 20
"""Longest name at the end of a line, its figure not counted."""
MANY = 12
"""More lines than these are thinner."""
_APART = 16
"""Distance of names at the ends of lines."""
_HOLLOW: Spec = {
    "type": "point",
    "size": 55,
    "filled": False,
    "fill": "var(--paper)",
    "strokeWidth": 2,
    "opacity": 1,
    "clip": True,
}

_LETTER = 7.0
"""Pixels of a letter of 13 pixels' height, about."""


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
    lines = [finite(series) for series in chart.series]
    most = room_for_each(len(lines))
    kept = [fewer(series, most) for series in lines]
    axes = Axes.of(chart, kept)
    ends = _ends(kept, axes, size) if size.words else []
    hiding = [{"filter": "indexof(hidden, datum.m) < 0"}] if interactive else []
    layers = [
        *([_rule_at_zero()] if chart.zero else []),
        *_line_layers(kept, hiding),
        *_guide_layers(chart.guide, axes),
        *_mark_layers(chart.marks, axes, _seeds(hiding)),
        *_end_layers(ends, hiding, interactive, "log_place" if axes.log_first else "place"),
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
        series=[columns_of(series) for series in kept],
        logs={
            axis: {"domain": domain, "numbers": log_numbers(*domain)} if domain else None
            for axis, domain in (("x", axes.log_x), ("y", axes.log_y))
        },
        margin={"left": axes.numbers(), "top": top, "right": 14, "bottom": 44 if size.words else 22},
        cut=any(len(a.points) < len(b.points) for a, b in zip(kept, lines, strict=True)),
    )


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
    if any(dotted(series) for series in lines):
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


def _rule_at_zero() -> Spec:
    return {
        "data": {"values": [{"y": 0}]},
        "mark": {"type": "rule", "color": "var(--ink)", "clip": True},
        "encoding": {"x": {"value": 0}, "x2": {"value": "width"}},
    }


def _guide_layers(guide: Guide | None, axes: Axes) -> list[Spec]:
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


def _mark_layers(marks: Sequence[Mark], axes: Axes, hiding: list[Spec]) -> list[Spec]:
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
            "part": axes.part(mark.x),
            "long": _LETTER * max(map(len, mark.text.split("\n"))) + 7,
            "dy": -11 if mark.above else 13,
        }
        for mark in marks
    ]
    # A page sets the width, so only the drawing knows whether the words fit between the point and the right edge.
    fits = "(1 - datum.part) * width > datum.long"
    words = {
        "align": {"expr": f"{fits} ? 'left' : 'right'"},
        "dx": {"expr": f"{fits} ? 7 : -7"},
        "dy": {"expr": "datum.dy"},
    }
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
            "mark": {"type": "text", "fontSize": 13, "color": "var(--ink)", "clip": True, "lineBreak": "\n", **words},
            "encoding": {"text": {"field": "text", "type": "nominal"}},
        },
    ]


def _ends(lines: Sequence[Series], axes: Axes, size: Size) -> list[Spec]:
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


def _end_layers(rows: list[Spec], hiding: list[Spec], interactive: bool, place: str) -> list[Spec]:
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
            "transform": [*hiding, *inside(place, "y")],
            "mark": {"type": "text", "align": "left", "dx": 10, "fontSize": 13, "fontWeight": 600, "clip": False},
            "encoding": {
                "x": {"value": "width"},
                "y": {"field": place, "type": "quantitative", "title": None},
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
