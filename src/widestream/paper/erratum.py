"""What an erratum is, and how its figures are written."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Cells = tuple[str, ...]
"""A row of a table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Erratum:
    """A place of the paper whose figures or words do not come out as printed."""

    number: int
    """E1 is 1."""
    title: str
    """In a few words."""
    where: str
    """Place in the paper."""
    printed: str
    """What stands there."""
    found: str
    """What we find."""
    changes: str
    """What it changes, and what not."""
    check: str = ""
    """Another command that shows it, beside `widestream paper errata NUMBER`."""
    table: tuple[Cells, ...] = ()
    """Computed figures, first row the headings; first column what it is, all others numbers."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Computed figures by name; empty where nothing is to be computed."""


def millions(value: float, digits: int = 1) -> str:
    """466549504 -> 466.5M."""
    return f"{value / 1e6:.{digits}f}M"


def percent(ratio: float, digits: int = 1) -> str:
    """0.0144 -> 1.4 %."""
    return f"{100 * ratio:.{digits}f} %"


def science(value: float) -> str:
    """1.187e19."""
    return f"{value:.4g}".replace("e+", "e")
