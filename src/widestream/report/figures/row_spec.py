"""Figures with a row a name as Vega-Lite specifications: bars, and differences with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from widestream.report import formats
from widestream.report.figures.axes import Spec
from widestream.report.figures.names import shorten
from widestream.report.figures.rows import BarChart, Forest
from widestream.report.figures.themes import GREY, NUMBERS, colour_scale
from widestream.report.formats import visible
from widestream.report.stats.intervals import Interval

ROW = 22
"""Height of a row."""
TALL_ROW = 42
"""Height of a row with its name above it, where there is no room beside it."""
LETTERS, NARROW_LETTERS = 34, 46
"""Longest name beside a row and above it; the whole one shows under the pointer."""
FIGURE = 62
"""Room for a figure right of its panel."""
_LETTER = 6.9
"""Width of a letter, on the safe side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A figure of rows, ready to be drawn."""

    spec: Spec
    """The specification: panels beside each other, or on a narrow page below each other."""
    fixed: int
    """What its width holds besides the panels."""
    across: int
    """Panels beside each other; they share the rest of the width evenly."""

    def wide(self, width: int) -> Spec:
        """The specification in so many pixels; a page's script does the same."""
        panel = max(80, (width - self.fixed) // self.across)
        way = "hconcat" if "hconcat" in self.spec else "vconcat"
        return self.spec | {way: [part | {"width": panel} for part in self.spec[way]]}


def forest_rows(forest: Forest, narrow: bool = False) -> Rows:
    """Dots with their intervals, panels beside each other; on a narrow page below each other, names above rows.

    What betters the reference is blue, what is worse vermilion; grey is what has no interval, one that holds zero, or
    no claim.
    """
    names = _short(forest.names, narrow)
    panels = [
        _panel(
            heading, [_row(name, names[name], gaps.get(name), forest, heading) for name in forest.names], forest, narrow
        )
        for heading, gaps in forest.panels.items()
    ]
    for panel in panels[1:]:
        panel["encoding"] = panel["encoding"] | {"y": panel["encoding"]["y"] | {"axis": None}}
    return _beside(forest.title, panels, list(names.values()), narrow)


def bar_rows(chart: BarChart, narrow: bool = False) -> Rows:
    """Bars from zero, their figures at their ends."""
    names = _short(chart.values, narrow)
    rows = [
        {
            "short": names[name],
            "name": visible(name),
            "at": value,
            "c": int(chart.line_at is not None and value > chart.line_at),
            "text": formats.three(value),
        }
        for name, value in chart.values.items()
    ]
    highest = max([*chart.values.values(), chart.line_at or 0.0, 0.0]) or 1.0
    x = _x((0.0, highest), chart.x_label)
    offset = {"yOffset": 8} if narrow else {}
    data = {"values": rows}
    tooltip = [{"field": "name", "type": "nominal"}, {"field": "text", "type": "nominal", "title": chart.x_label}]
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "height": 14, **offset},
            "encoding": {"x": {"field": "at", **x}, "color": _colour(), "tooltip": tooltip},
        },
        {
            "mark": {"type": "text", "align": "left", "dx": 6, "color": "var(--ink)", "fontSize": 13, **offset},
            "encoding": {"x": {"field": "at", **x}, "text": {"field": "text", "type": "nominal"}},
        },
    ]
    if chart.line_at is not None:
        layers.append(
            {
                "data": {"values": [{"at": chart.line_at}]},
                "mark": {"type": "rule", "color": "var(--ink)"},
                "encoding": {"x": {"field": "at", **x}, "y": None},
            }
        )
    panel = _framed("", data, layers, rows, narrow)
    return _beside(chart.title, [panel], list(names.values()), narrow)


def _row(name: str, short: str, gap: Interval | None, forest: Forest, heading: str) -> dict[str, Any]:
    """What is drawn of one difference: `at` where its dot lies, `from` and `to` its interval as far as it is shown."""
    row: dict[str, Any] = {"name": visible(name), "short": short}
    if gap is None or not math.isfinite(gap.mean):
        remark = visible(forest.remarks.get(name, formats.interval(None, None)))
        return row | {"remark": remark if heading == next(iter(forest.panels)) else "", "difference": remark}
    low, high = forest.x_range
    known = gap.low is not None and gap.high is not None
    row |= {
        "at": min(max(gap.mean, low), high),
        "beyond": int(gap.mean > high) - int(gap.mean < low),
        "c": GREY
        if gap.holds_zero or not known or name in forest.unseen.get(heading, ())
        else int((gap.mean > 0) != forest.higher_is_better),
        "text": formats.signed(gap.mean),
        "difference": formats.signed(gap.mean),
        "interval": formats.interval(gap.low, gap.high) if known else f"none, {gap.n} value{'s' if gap.n > 1 else ''}",
    }
    if gap.low is not None and gap.high is not None and gap.low < high and gap.high > low:
        row |= {"from": max(gap.low, low), "to": min(gap.high, high)}
    return row


def _panel(heading: str, rows: list[dict[str, Any]], forest: Forest, narrow: bool) -> Spec:
    x, data = _x(forest.x_range, forest.x_label), {"values": rows}
    low, high = forest.x_range
    offset = {"yOffset": 8} if narrow else {}
    tooltip = [
        {"field": "name", "type": "nominal"},
        {"field": "difference", "type": "nominal"},
        {"field": "interval", "type": "nominal", "title": "95 % interval"},
    ]
    at = {"x": {"field": "at", **x}, "color": _colour()}
    arrow = {"type": "point", "filled": True, "size": 80, "opacity": 1, **offset}
    layers: list[Spec] = [
        {
            "data": {"values": [{}]},
            "mark": {"type": "rule", "color": "var(--ink)"},
            "encoding": {"x": {"datum": 0, **x}, "y": None},
        },
        {
            "transform": [{"filter": "isValid(datum.from)"}],
            "mark": {"type": "rule", "strokeWidth": 5, "opacity": 0.3, "strokeCap": "round", **offset},
            "encoding": {"x": {"field": "from", **x}, "x2": {"field": "to"}, "color": _colour()},
        },
        {
            "transform": [{"filter": "datum.beyond === 0"}],
            "mark": {"type": "circle", "size": 70, "opacity": 1, "stroke": "var(--paper)", **offset},
            "encoding": at,
        },
        *(
            {
                "transform": [{"filter": f"datum.beyond === {side}"}],
                "mark": arrow | {"shape": f"triangle-{'right' if side > 0 else 'left'}"},
                "encoding": at,
            }
            for side in (1, -1)
        ),
        {
            "transform": [{"filter": "isValid(datum.at)"}],
            "mark": {"type": "text", "align": "left", "dx": 8, "color": "var(--ink)", "fontSize": 12, **offset},
            "encoding": {"x": {"value": "width"}, "text": {"field": "text", "type": "nominal"}},
        },
        {
            "transform": [{"filter": "isValid(datum.remark)"}],
            "mark": {"type": "text", "align": "left", "dx": 4, "color": "var(--soft)", "fontSize": 12, **offset},
            "encoding": {"x": {"value": 0}, "text": {"field": "remark", "type": "nominal"}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": ROW, "opacity": 0, **offset},
            "encoding": {"x": {"datum": low, **x}, "x2": {"datum": high}, "tooltip": tooltip},
        },
    ]
    return _framed(heading, data, layers, rows, narrow)


def _framed(heading: str, data: Spec, layers: list[Spec], rows: Sequence[dict[str, Any]], narrow: bool) -> Spec:
    """A panel of layers under its heading, with a row for every name."""
    y: Spec = {
        "field": "short",
        "type": "nominal",
        "scale": {"domain": [row["short"] for row in rows]},
        "axis": None if narrow else {"title": None, "labelLimit": 400, "labelColor": "var(--ink)"},
    }
    if narrow:
        above = {"type": "text", "align": "left", "dy": -11, "color": "var(--ink)", "fontSize": 12}
        text = {"x": {"value": 0}, "text": {"field": "short", "type": "nominal"}}
        layers = [*layers[:-1], {"mark": above, "encoding": text}, layers[-1]]
    return {
        "title": {"text": heading, "frame": "group", "color": "var(--ink)"} if heading else None,
        "data": data,
        "height": {"step": TALL_ROW if narrow else ROW},
        "layer": layers,
        "encoding": {"y": y},
    }


def _beside(title: str, panels: list[Spec], names: Sequence[str], narrow: bool) -> Rows:
    across = 1 if narrow else len(panels)
    beside = 0 if narrow else 14 + round(_LETTER * max(map(len, names), default=0))
    spec: Spec = {
        "title": {"text": wrap(visible(title), 50 if narrow else 100) or [""]},
        ("vconcat" if narrow else "hconcat"): panels,
        "spacing": 76 if narrow else FIGURE,
        "bounds": "flush",
    }
    return Rows(spec=spec, fixed=beside + across * FIGURE + 8, across=across)


def _x(ends: tuple[float, float], title: str) -> Spec:
    axis = {"title": wrap(visible(title), 44), "labelExpr": NUMBERS, "labelOverlap": True, "tickCount": 5, "grid": True}
    return {
        "type": "quantitative",
        "scale": {"domain": list(ends), "nice": False},
        "axis": axis,
    }


def _colour() -> Spec:
    return {"field": "c", "type": "nominal", "scale": colour_scale(), "legend": None}


def _short(names: Sequence[str] | dict[str, float], narrow: bool) -> dict[str, str]:
    """Names in the room that there is, by the whole ones."""
    short = shorten([visible(name) for name in names], NARROW_LETTERS if narrow else LETTERS)
    return {name: short[visible(name)] for name in names}
