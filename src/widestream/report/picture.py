"""The picture of a result: loss and gap over tokens as two SVG files, light and dark, for a README."""

from pathlib import Path

from widestream.report.charts import gap_chart, loss_chart
from widestream.report.comparison import Comparison
from widestream.report.files import write_text
from widestream.report.svg import render, standalone

WIDTH, HEIGHT = 520, 330


def write_picture(comparison: Comparison, stem: str | Path) -> tuple[Path, Path]:
    """Write STEM-light.svg and STEM-dark.svg, with transparent ground, and return their paths."""
    charts = [loss_chart(comparison, "tokens")]
    if (gap := gap_chart(comparison)) is not None:
        charts.append(gap)
    panels = [render(chart, WIDTH, HEIGHT) for chart in charts]
    title = " ".join(verdict.headline for verdict in comparison.verdict)
    light, dark = (Path(f"{stem}-{theme}.svg") for theme in ("light", "dark"))
    for path, theme in ((light, "light"), (dark, "dark")):
        write_text(path, standalone(panels, WIDTH, HEIGHT, theme, title))
    return light, dark
