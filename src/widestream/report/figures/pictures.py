"""Figures as SVG files, light and dark, for README and docs; drawn by vl-convert, the extra `pictures`."""

import re
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from widestream.files import write_page
from widestream.report.figures.axes import WIDE, Spec
from widestream.report.figures.chart import Chart, Switched
from widestream.report.figures.columns import datasets
from widestream.report.figures.line_spec import line_spec
from widestream.report.figures.row_spec import bar_rows, forest_rows
from widestream.report.figures.rows import BarChart, Forest
from widestream.report.figures.themes import CONFIG, THEMES, in_theme
from widestream.report.formats import visible

Figure = Chart | Switched | BarChart | Forest
"""What can be drawn."""

ALONE = 1000
"""Width of a figure of rows that has a picture to itself."""
MISSING = "The picture is not drawn: that takes vl-convert-python. Install it with: pip install 'widestream[pictures]'"
"""Said where the extra is not installed."""


def write_pictures(stem: str | Path, figures: Sequence[Figure], title: str) -> list[Path]:
    """Write figures beside each other as STEM-light.svg and STEM-dark.svg, with transparent ground.

    Args:
        stem: path without its ending.
        figures: at least one.
        title: what the picture shows, for those who hear it.

    Returns:
        Both paths; none, and a sentence on the terminal, where the extra `pictures` is not installed.

    Raises:
        UserError: nowhere to write.
    """
    try:
        import vl_convert
    except ImportError:
        print(MISSING, file=sys.stderr)
        return []
    spec = picture_spec(figures)
    written = []
    for theme in THEMES:
        path = Path(f"{stem}-{theme}.svg")
        drawn = _numbered(vl_convert.vegalite_to_svg(in_theme(spec, theme)))
        named = drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(visible(title))}" ', 1)
        write_page(path, f"{named}\n")
        written.append(path)
    return written


def picture_spec(figures: Sequence[Figure]) -> Spec:
    """Figures beside each other as one specification that nobody can touch, colours still by name."""
    rows: dict[str, Any] = {}
    panels = []
    for number, figure in enumerate(figures):
        panel, data = _panel(figure, len(figures))
        panels.append(_renamed(panel, number))
        rows |= {f"{name}{number}": values for name, values in data.items()}
    together = panels[0] if len(panels) == 1 else {"hconcat": panels, "spacing": 32}
    return {
        **together,
        "datasets": rows,
        "config": CONFIG,
        "padding": {"left": 4, "top": 4, "right": 8, "bottom": 4},
    }


def _panel(figure: Figure, beside: int) -> tuple[Spec, dict[str, Any]]:
    match figure:
        case Switched():
            return _panel(next(iter(figure.charts.values())), beside)
        case Chart():
            lines = line_spec(figure, WIDE, interactive=False)
            return lines.spec, datasets(lines.series)
        case BarChart():
            return bar_rows(figure).wide(ALONE if beside == 1 else 520), {}
        case Forest():
            return forest_rows(figure).wide(ALONE if beside == 1 else 520), {}


def _renamed(panel: Spec, number: int) -> Spec:
    """A panel whose named data and layers are its own among the others'."""
    if "layer" not in panel:
        return panel

    def renamed(part: Spec) -> Spec:
        return part | {"name": f"{part['name']}{number}"} if "name" in part else part

    return panel | {"layer": [renamed(layer) | {"data": renamed(layer["data"])} for layer in panel["layer"]]}


def _numbered(svg: str) -> str:
    """The same picture under the same names, however many were drawn before it."""
    names: dict[str, str] = {}
    return re.sub(r"\bclip\d+\b", lambda found: names.setdefault(found[0], f"clip{len(names)}"), svg)
