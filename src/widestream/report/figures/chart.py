"""What a line chart shows: plain values that other rooms fill in. `line_spec.py` makes a specification of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line, or, of one point, a dot."""

    points: tuple[tuple[float, float], ...]
    """(x, y) in order of x; what is not finite is left out."""
    colour: int
    """Number of the model; picks the colour, and from the seventh on a dash too."""
    label: str | None = None
    """Name at the line's end; None for a line that needs none."""
    model: str = ""
    """Name in the legend and under the pointer, whole; default: the label."""
    seed: str = ""
    """Seed of a line that is one run; shown under the pointer, and hidden with all seeds."""
    value: str = ""
    """Figure after the name at the line's end."""
    thick: bool = True
    """A mean (thick) or one seed (thin)."""
    broken: bool = False
    """Dashed: a run that diverged."""
    band: tuple[tuple[float, float, float], ...] = ()
    """(x, low, high) of a shaded band."""
    measured: tuple[float, ...] = ()
    """y of each point as it was measured, where the line is a smoothed one."""
    titles: tuple[str, ...] = ()
    """What each point is called under the pointer, besides its model; empty for none."""

    @property
    def name(self) -> str:
        """The model's whole name; empty for a line that belongs to none."""
        return self.model or self.label or ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guide:
    """A dotted line at one height from one curve to the other, dropped to the axis, with what it says."""

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
    """What is said of it, beside it, in one line or two."""
    colour: int
    """Model."""
    above: bool = False
    """Whether the words stand above the line, as they must where it falls, or below."""
    model: str = ""
    """Name of the line, as in the legend, with which it is hidden."""
    seed: str = ""
    """Seed of a line that is one run, with which it is hidden."""


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
    x_range: tuple[float, float] | None = None
    """Lowest and highest x shown; default: all, from zero on a linear axis."""
    log_x: bool = False
    """Logarithmic x axis at first."""
    log_y: bool = False
    """The same of the y axis."""
    guide: Guide | None = None
    """A horizontal reading."""
    marks: tuple[Mark, ...] = ()
    """Named points."""
    zero: bool = False
    """Draw a line at zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Switched:
    """The same over several things, one at a time: a page has a switch, a picture shows the first."""

    charts: dict[str, Chart]
    """By the word on the switch; at least one."""

    @property
    def title(self) -> str:
        """What it shows, for those who hear it."""
        return next(iter(self.charts.values())).title


def with_room(values: Iterable[float], below: float, above: float) -> tuple[float, float]:
    """From the lowest to the highest of numbers, and parts of that distance (of 1 where they are equal) beyond.

    What is not finite is left out; without a number it is a range around zero.
    """
    known = [value for value in values if isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    distance = high - low or 1.0
    return low - below * distance, high + above * distance
