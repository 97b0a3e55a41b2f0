"""Small charts of a league: every model's loss beside the reference's, over one resource."""

from widestream.report import formats
from widestream.report.comparison import Comparison
from widestream.report.figures.comparison_charts import EARLY, scaled_axis
from widestream.report.figures.svg import Chart, Series
from widestream.report.league import ranked
from widestream.report.stats.groups import Group
from widestream.report.stats.matched import Resource

GREY = 5
"""Colour of the reference."""


def small_charts(comparison: Comparison, resource: Resource) -> list[Chart]:
    """One chart for each model, in the ranking's order; all have the same axes."""
    groups = comparison.groups
    end = max(group.curve.axis(resource)[-1] for group in groups)
    unit, name = scaled_axis(resource, end)
    seen = [
        loss
        for group in groups
        for at, loss in zip(group.curve.axis(resource), group.curve.loss, strict=True)
        if at >= EARLY * end
    ]
    low = min(seen)
    high = min(max(seen), low + 8 * max(groups[0].curve.best - low, 0.1))
    charts = []
    for pair in ranked(comparison):
        lines = (_line(pair.reference, resource, unit, GREY), _line(pair.other, resource, unit, 0))
        gap = formats.signed(pair.at_equal[resource].mean) if resource in pair.at_equal else ""
        chart = Chart(
            title=f"{pair.other.label} and {pair.reference.label} over {name}",
            x_label=name,
            y_label=f"{pair.other.label} {gap}",
            series=lines,
            y_range=(low - 0.05 * (high - low), high),
        )
        charts.append(chart)
    return charts


def _line(group: Group, resource: Resource, unit: float, colour: int) -> Series:
    points = tuple((at / unit, loss) for at, loss in zip(group.curve.axis(resource), group.curve.loss, strict=True))
    titles = tuple(f"{group.label}: {formats.loss(loss)}" for loss in group.curve.loss)
    return Series(points=points, colour=colour, titles=titles)
