"""Figures as a page shows them: empty boxes, one block of data for all of them, and the scripts that draw.

The one place where markup is declared safe: element names and numbers written here, words escaped, data as JSON without
a `<`, and the scripts in `vendor` and `templates`.
"""

import json
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from widestream.report.figures.axes import SMALL, WIDE, Size
from widestream.report.figures.chart import Chart, Switched
from widestream.report.figures.line_spec import Lines, line_spec
from widestream.report.figures.pictures import Figure
from widestream.report.figures.row_spec import ROW, Rows, bar_rows, forest_rows
from widestream.report.figures.rows import BarChart, Forest
from widestream.report.figures.themes import CONFIG, NUMBERS, dash_scale
from widestream.report.formats import visible

LIBRARIES = ("vega.min.js", "vega-lite.min.js")
"""In `report/vendor`, in the order in which they are loaded."""
_SHARED = 60
"""Parts of the data of so many letters or more are written once, however many figures hold them."""
_TOLD = 8
"""Most lines whose values are read out."""


def in_script(text: str) -> Markup:
    """JSON for the inside of a script element, which a `<` could end."""
    return Markup(text.replace("<", "\\u003c"))


class Drawer:
    """Draws the figures of one page."""

    def __init__(self) -> None:
        self._figures: list[Any] = []
        self._shared: dict[str, int] = {}
        self.cut = False
        """Whether some line is drawn through a part of its points."""

    def draw(self, figure: Figure, small: bool = False) -> Markup:
        """The box of a figure, described for those who hear it; `small` for one of many, named by what is around."""
        size, number = SMALL if small else WIDE, len(self._figures)
        data, height = self._data(figure, size)
        self._figures.append(self._share(data))
        kind, words = "chart little" if small else "chart", _text(described(figure))
        return Markup(
            f'<div class="{kind}" data-figure="{number}">'
            f'<div class="plot" role="img" style="min-height:{height}px" aria-label="{words}"></div></div>'
        )

    def data(self) -> Markup:
        """What the figures show, as JSON; nothing where there are none."""
        shared = ",".join(self._shared)
        rest = json.dumps(
            {"config": CONFIG, "numbers": NUMBERS, "dashes": dash_scale()["range"], "figures": self._figures},
            allow_nan=False,
            separators=(",", ":"),
        )
        return in_script(f'{{"shared":[{shared}],{rest[1:]}')

    @property
    def used(self) -> bool:
        """Whether the page has figures at all."""
        return bool(self._figures)

    @staticmethod
    def scripts() -> list[Markup]:
        """The scripts that draw, in order."""
        return [Markup(script) for script in _scripts()]

    def _data(self, figure: Figure, size: Size) -> tuple[dict[str, Any], int]:
        """What the page's script draws a figure from, and about how high that is."""
        match figure:
            case Chart():
                return self._data(Switched(charts={"": figure}), size)
            case Switched(charts=charts):
                views = {visible(word): self._view(chart, line_spec(chart, size)) for word, chart in charts.items()}
                return {"views": views}, size.height + (70 if size.words else 30)
            case BarChart():
                return _both(bar_rows(figure), bar_rows(figure, narrow=True)), ROW * len(figure.values) + 90
            case Forest():
                return _both(forest_rows(figure), forest_rows(figure, narrow=True)), ROW * len(figure.names) + 100

    def _view(self, chart: Chart, lines: Lines) -> dict[str, Any]:
        self.cut = self.cut or lines.cut
        return {
            "spec": lines.spec,
            "series": lines.series,
            "logs": lines.logs,
            "margin": lines.margin,
            "x": visible(chart.x_label),
            "y": visible(chart.y_label),
        }

    def _share(self, node: Any) -> Any:
        """A part of the data with a reference in place of everything long, so that what figures share stands once."""
        if isinstance(node, dict):
            node = {name: self._share(value) for name, value in node.items()}
        elif isinstance(node, list | tuple):
            node = [self._share(value) for value in node]
        else:
            return node
        text = json.dumps(node, allow_nan=False, separators=(",", ":"))
        return {"$": self._shared.setdefault(text, len(self._shared))} if len(text) > _SHARED else node


def described(figure: Figure) -> str:
    """What a figure shows, in words: its title, and where its lines or rows lie if they are few."""
    match figure:
        case Switched():
            return described(next(iter(figure.charts.values())))
        case Chart():
            named = [series for series in figure.series if series.label and series.points]
            if not 0 < len(named) <= _TOLD:
                return f"{figure.title}; {len(figure.series)} lines."
            ends = [
                f"{series.label} goes from {series.points[0][1]:.4g} to {series.points[-1][1]:.4g}" for series in named
            ]
            return f"{figure.title}: {'; '.join(ends)}."
        case BarChart():
            return f"{figure.title}: {'; '.join(f'{name} {value:.3g}' for name, value in figure.values.items())}."
        case Forest():
            rows = next(iter(figure.panels.values()), {})
            told = [f"{name} {gap.mean:+.3f}" for name, gap in rows.items()]
            return f"{figure.title}: {'; '.join(told)}." if len(told) <= 4 * _TOLD else f"{figure.title}."


def _both(wide: Rows, narrow: Rows) -> dict[str, Any]:
    return {
        name: {"spec": rows.spec, "fixed": rows.fixed, "across": rows.across}
        for name, rows in (("wide", wide), ("narrow", narrow))
    }


@cache
def _scripts() -> tuple[str, ...]:
    """The libraries, less the comment that would have a browser look for a map of their source; then our own."""
    report = files("widestream.report")
    libraries = [report.joinpath("vendor", name).read_text(encoding="utf-8") for name in LIBRARIES]
    own = report.joinpath("templates", "charts.js").read_text(encoding="utf-8")
    scripts = (*(text.partition("//# sourceMappingURL=")[0] for text in libraries), own)
    assert not any("</script" in text.lower() or "<!--" in text for text in scripts), "a script would end early"
    return scripts


def _text(words: str) -> str:
    return escape(visible(words))
