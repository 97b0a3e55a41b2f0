"""The picture of a result, light and dark, for a README: loss and gap over tokens, or the ranking of many models."""

from pathlib import Path

from widestream.report.comparison import Comparison
from widestream.report.figures.comparison_charts import gap_chart, loss_chart
from widestream.report.figures.ranking_chart import render_ranking
from widestream.report.figures.svg import write_both, write_charts
from widestream.report.league import is_league, league_verdict
from widestream.report.stats.matched import RESOURCES

LEAGUE_WIDTH = 1000


def write_picture(comparison: Comparison, stem: str | Path) -> tuple[Path, Path]:
    """Write STEM-light.svg and STEM-dark.svg, with transparent ground, and return their paths."""
    if is_league(comparison):
        panel, height = render_ranking(comparison, RESOURCES, LEAGUE_WIDTH)
        return write_both(stem, [panel], LEAGUE_WIDTH, height, league_verdict(comparison).headline)
    charts = [chart for chart in (loss_chart(comparison, "tokens"), gap_chart(comparison)) if chart is not None]
    return write_charts(stem, charts, " ".join(verdict.headline for verdict in comparison.verdict))
