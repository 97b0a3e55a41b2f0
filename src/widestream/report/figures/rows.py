"""What figures with a row a name show: bars, and differences with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from widestream.report.stats.intervals import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class BarChart:
    """Horizontal bars from zero."""

    title: str
    """What it shows, for those who hear it; stands above it too."""
    x_label: str
    """With the unit."""
    values: dict[str, float]
    """Length of each bar, by its name, from the top down."""
    line_at: float | None = None
    """Where a line is drawn for comparison; bars beyond it have a colour of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forest:
    """Differences as dots with their intervals, a row a name, in one panel or in several beside each other."""

    title: str
    """What it shows, for those who hear it; stands above it too."""
    x_label: str
    """With the unit."""
    names: tuple[str, ...]
    """Rows, from the top down; each name once."""
    panels: dict[str, dict[str, Interval]]
    """Differences by name, by the heading of their panel; the heading of a single one may be empty."""
    x_range: tuple[float, float]
    """Lowest and highest difference shown; what lies beyond stands at the edge as an arrow with its figure."""
    unseen: dict[str, frozenset[str]] = field(default_factory=dict)
    """Names, by panel, whose difference is not claimed though its own interval leaves zero out: one among many."""
    remarks: dict[str, str] = field(default_factory=dict)
    """Words in place of a difference, by name: of a model that has none."""
    higher_is_better: bool = False
    """Whether what lies above zero is the better; of losses it is what lies below."""


def forest_of(gaps: Sequence[tuple[str, Interval]]) -> Forest:
    """The plot of differences in held-out loss.

    Args:
        gaps: name and difference, from the top down; names that occur twice are numbered.
    """
    rows: dict[str, Interval] = {}
    for name, gap in gaps:
        rows[name if name not in rows else f"{name} ({sum(other.startswith(name) for other in rows) + 1})"] = gap
    return Forest(
        title="Differences in held-out loss at equal tokens, with 95 % intervals",
        x_label="nats per token; below zero is better",
        names=tuple(rows),
        panels={"": rows},
        x_range=span([end for gap in rows.values() for end in (gap.mean, gap.low, gap.high)]),
    )


def span(ends: list[float | None]) -> tuple[float, float]:
    """A range that holds zero and all ends, with some room."""
    known = [0.0, *(end for end in ends if end is not None)]
    low, high = min(known), max(known)
    room = 0.06 * (high - low or 1.0)
    return low - room, high + room
