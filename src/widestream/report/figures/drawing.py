"""Figures as a page shows them: SVG for a desk and, where that would not fit, for a phone.

The one place where markup is declared safe: it is SVG made here, in which all words are escaped (`svg.svg_text`).
"""

from dataclasses import dataclass

from markupsafe import Markup

from widestream.report.figures.bar_chart import BarChart, render_bars
from widestream.report.figures.forest_plot import Forest, render_forest
from widestream.report.figures.ranking_chart import Ranking, render_ranking
from widestream.report.figures.svg import Chart, render
from widestream.report.stats.matched import RESOURCES

WIDE, NARROW, SMALL = (520, 350), (358, 300), (258, 190)
"""Sizes of a chart beside others on a desk, alone on a phone, and among many. Letters are 13 units high in all."""
WHOLE = 1072
"""Width of a figure that has the page to itself."""

Figure = Chart | BarChart | Forest | Ranking
"""What a page can draw."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure as SVG."""

    wide: Markup
    """For a desk; for a phone too, if it has none of its own."""
    narrow: Markup | None = None
    """For a phone; the style sheet shows one of the two."""


def draw(figure: Figure) -> Drawing:
    """Draw a figure in the sizes that a page needs."""
    match figure:
        case Chart():
            return Drawing(Markup(render(figure, *WIDE)), Markup(render(figure, *NARROW)))
        case BarChart():
            return Drawing(Markup(render_bars(figure, WIDE[0], figure.height)))
        case Forest():
            return Drawing(Markup(render_forest(figure, WHOLE)), Markup(render_forest(figure, NARROW[0])))
        case Ranking(comparison):
            panels = "".join(render_ranking(comparison, (resource,), NARROW[0])[0] for resource in RESOURCES)
            return Drawing(Markup(render_ranking(comparison, RESOURCES, WHOLE)[0]), Markup(panels))


def draw_small(chart: Chart) -> Markup:
    """Draw a chart as one of many."""
    return Markup(render(chart, *SMALL))
