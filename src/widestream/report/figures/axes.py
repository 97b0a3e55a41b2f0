"""The two axes of a line chart: where numbers lie, and how they are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from widestream.report.figures.chart import Chart, Series
from widestream.report.figures.themes import NUMBERS, log_numbers
from widestream.report.formats import visible

Spec = dict[str, Any]
"""A Vega-Lite specification, or a part of one."""
_DIGIT = 7
"""Width of a digit beside an axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large a chart is, in pixels; a page sets the width to the room that there is."""

    width: int = 420
    """Of the plot, without names and numbers around it."""
    height: int = 280
    """Of the plot."""
    words: bool = True
    """Whether axes and line ends are named; where not, what stands around the chart names them."""


WIDE, SMALL = Size(), Size(width=190, height=130, words=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """Where numbers lie."""

    x_range: tuple[float, float]
    """Lowest and highest x of a linear axis."""
    y_range: tuple[float, float]
    """Lowest and highest y."""
    log_x: list[float] | None
    """Range of a logarithmic axis; None where there is something that has no logarithm."""
    log_y: list[float] | None
    """The same of the y axis."""
    log: bool
    """Whether the x axis starts as a logarithmic one."""
    log_first: bool
    """The same of the y axis."""

    @classmethod
    def of(cls, chart: Chart, lines: Sequence[Series]) -> "Axes":
        """The axes of a chart with the lines as they are drawn."""
        xs = [x for series in lines for x, _ in series.points]
        ys = [y for series in lines for _, y in series.points]
        x_range = chart.x_range or (min(0.0, *xs), max(xs)) if xs else (0.0, 1.0)
        positive = [x for x in xs if x_range[0] <= x <= x_range[1]]
        log_x = None
        if positive and min(positive) > 0:
            log_x = list(_wide((min(positive), max(positive))))
        low, high = y_range = _wide(chart.y_range)
        log_y = [max(low, 0.98 * min(ys)), high] if ys and 0 < min(ys) < high else None
        return cls(
            x_range=_wide(x_range),
            y_range=y_range,
            log_x=log_x,
            log_y=log_y,
            log=chart.log_x and bool(log_x),
            log_first=chart.log_y and bool(log_y),
        )

    def x(self, chart: Chart, size: Size) -> Spec:
        """The x channel."""
        title = visible(chart.x_label) if size.words else None
        domain = self.log_x if self.log else self.x_range
        return _channel("x", domain, self.log, title=title, grid=False, tickCount=max(3, size.width // 75))

    def y(self, size: Size) -> Spec:
        """The y channel; the chart's own title names it."""
        domain = self.log_y if self.log_first else self.y_range
        return _channel("y", domain, self.log_first, title=None, tickCount=max(3, size.height // 48))

    def numbers(self) -> int:
        """Width of the numbers beside the y axis."""
        low, high = self.y_range
        if self.log_first and self.log_y:
            return 20 + _DIGIT * max(len(f"{end:.0e}") for end in self.log_y)
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
