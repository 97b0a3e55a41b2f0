"""The picture of a result, light and dark, for a README: loss and gap over tokens, or the ranking of many models."""

from pathlib import Path

from widestream.report.comparison import Comparison
from widestream.report.figures.comparison_charts import gap_chart, loss_chart
from widestream.report.figures.ranking_chart import render_ranking
from widestream.report.figures.svg import render, write_both
from widestream.report.league import is_league, league_verdict
from widestream.report.stats.matched import RESOURCES

WIDTH, HEIGHT = 520, 330
LEAGUE_WIDTH = 1000


def write_picture(comparison: Comparison, stem: str | Path) -> tuple[Path, Path]:
    """Write STEM-light.svg and STEM-dark.svg, with transparent ground, and return their paths."""
    if is_league(comparison):
        width = LEAGUE_WIDTH
        panel, height = render_ranking(comparison, RESOURCES, width)
        panels, title = [panel], league_verdict(comparison).headline
    else:
        charts = [loss_chart(comparison, "tokens")]
        if (gap := gap_chart(comparison)) is not None:
            charts.append(gap)
        width, height = WIDTH, HEIGHT
        panels = [render(chart, width, height) for chart in charts]
        title = " ".join(verdict.headline for verdict in comparison.verdict)
    return write_both(stem, panels, width, height, title)
