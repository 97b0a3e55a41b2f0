"""The picture of a result, light and dark, for a README: loss and gap over tokens, or the ranking of many models."""

from pathlib import Path

from widestream.report.comparison import Comparison
from widestream.report.figures.comparison_charts import gap_chart, loss_chart, ranking
from widestream.report.figures.pictures import write_pictures
from widestream.report.league import is_league, league_verdict


def write_picture(comparison: Comparison, stem: str | Path) -> list[Path]:
    """Write STEM-light.svg and STEM-dark.svg, with transparent ground, and return their paths; see `write_pictures`."""
    if is_league(comparison):
        return write_pictures(stem, [ranking(comparison)], league_verdict(comparison).headline)
    charts = [chart for chart in (loss_chart(comparison, "tokens"), gap_chart(comparison, "tokens")) if chart]
    return write_pictures(stem, charts, " ".join(verdict.headline for verdict in comparison.verdict))
