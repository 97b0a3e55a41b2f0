"""What an erratum is: words of `templates/errata.yaml` that quote computed figures, and how those are written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml

from widestream.paper import printed
from widestream.report.formats import count

if TYPE_CHECKING:
    from jinja2 import Environment

Cells = tuple[str, ...]
"""A row of a table."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What is computed for an erratum."""

    values: Mapping[str, float] = field(default_factory=dict)
    """By name; empty where nothing is to be computed."""
    table: tuple[Cells, ...] = ()
    """First row the headings; first column what it is, all others numbers."""
    quoted: Mapping[str, Any] = field(default_factory=dict)
    """What the words quote beside `values`."""


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
    table: tuple[Cells, ...]
    """Of `Figures`."""
    values: Mapping[str, float]
    """Of `Figures`."""


def make_erratum(number: int, figures: Figures) -> Erratum:
    """Put figures into the words of an erratum."""
    data = {"values": figures.values, "paper": printed, **figures.quoted}
    texts = {name: templates().from_string(text).render(data) for name, text in _words()[number - 1].items()}
    return Erratum(number=number, table=figures.table, values=figures.values, **texts)


@cache
def templates() -> "Environment":
    """Words and pages in `templates/`, with filters for figures."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("widestream.paper"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"millions": millions, "percent": percent, "science": science, "count": count}
    environment.filters["whole"] = "{:,}".format
    return environment


@cache
def _words() -> list[dict[str, str]]:
    return yaml.safe_load(files("widestream.paper").joinpath("templates/errata.yaml").read_text(encoding="utf-8"))


def millions(value: float, digits: int = 1) -> str:
    """466549504 -> 466.5M."""
    return f"{value / 1e6:.{digits}f}M"


def percent(ratio: float, digits: int = 1) -> str:
    """0.0144 -> 1.4 %."""
    return f"{100 * ratio:.{digits}f} %"


def science(value: float) -> str:
    """1.187e19."""
    return f"{value:.4g}".replace("e+", "e")
