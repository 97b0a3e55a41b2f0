"""The charts of a league: every model beside the reference, one chart each."""

from dataclasses import dataclass
from functools import cache

from widestream.report import formats
from widestream.report.comparison import Comparison
from widestream.report.figures.chart import Chart, Series, Switched
from widestream.report.figures.comparison_charts import (
    AXIS_WORDS,
    end_of,
    losses_in_view,
    lost,
    lost_runs,
    over_resources,
    unit_of,
)
from widestream.report.figures.themes import GREY
from widestream.report.league import ranked
from widestream.report.stats.groups import Apart, Group, diverged_seeds
from widestream.report.stats.matched import Resource
from widestream.report.verdict import METRIC_NAMES

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallChart:
    """One of many charts, and what stands above it."""

    name: str
    """The model, whole."""
    says: str
    """Its difference, or what became of it."""
    figure: Switched
    """Its loss and the reference's."""


def small_charts(comparison: Comparison) -> list[SmallChart]:
    """Every model of a league beside the reference: in the ranking's order, those out of it, those that diverged.

    Charts have the same axes as far as the model is then in view, and else their own.
    """
    usual = cache(lambda resource: _Usual.of(comparison, resource))

    def small(model: Group | Apart, says: str) -> SmallChart:
        figure = over_resources(lambda resource: _chart(comparison, model, resource, usual(resource)))
        assert figure is not None, "a model with a curve has a chart"
        return SmallChart(name=model.label, says=says, figure=figure)

    charts = []
    for pair in (*ranked(comparison), *comparison.unranked):
        says = formats.signed(pair.difference.mean) if pair.claimed else diverged_seeds(pair.other.members)
        if pair.claimed and pair in comparison.unranked:
            says += f" at {formats.count(pair.tokens)} tokens"
        charts.append(small(pair.other, says))
    return [*charts, *(small(one, one.reason) for one in comparison.apart if lost_runs(one))]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Usual:
    """What the charts of one resource have in common."""

    end: float
    """The amount that half of the models have spent."""
    y_range: tuple[float, float]
    """Range of losses."""
    reference: Points
    """The reference's curve."""

    @classmethod
    def of(cls, comparison: Comparison, resource: Resource) -> "_Usual":
        curves = [group.curve.points(resource) for group in comparison.groups]
        ends = sorted(points[-1][0] for points in curves)
        return cls(end=ends[len(ends) // 2], y_range=losses_in_view(curves), reference=curves[0])


def _chart(comparison: Comparison, model: Group | Apart, resource: Resource, usual: _Usual) -> Chart:
    """A model's mean, its runs that diverged, and the reference's mean behind them."""
    own = model.curve.points(resource) if isinstance(model, Group) else ()
    runs = [(run, lost(run, model.label, 0, comparison.metric, resource, 1.0)) for run in lost_runs(model)]
    end = max(points[-1][0] for points in (own, *(line.points for _, line in runs)) if points)
    unit, name = unit_of(resource, end)
    last = usual.end if 0.5 * usual.end <= end <= 1.5 * usual.end else 1.02 * end
    low, high = usual.y_range
    if not all(low <= loss <= high for at, loss in own if at >= end / 2):
        beside = [point for point in usual.reference if point[0] <= last]
        low, high = losses_in_view([points for points in (own, beside) if points])
    reference = comparison.groups[0].label
    lines = [
        Series(points=_scaled(usual.reference, unit), colour=GREY, label=reference),
        *([Series(points=_scaled(own, unit), colour=0, label=model.label)] if own else []),
    ]
    dashed = [(run, lost(run, model.label, 0, comparison.metric, resource, unit)) for run, _ in runs]
    return Chart(
        title=f"{model.label} and {reference} over {AXIS_WORDS[resource]} ({name})",
        x_label=f"{AXIS_WORDS[resource]} ({name})",
        y_label=METRIC_NAMES[comparison.metric],
        series=(*lines, *(line for _, line in dashed)),
        x_range=(0.0, last / unit),
        y_range=(low, high),
        marks=tuple(end_of(line, run, (low, high)) for run, line in dashed),
    )


def _scaled(points: Points, unit: float) -> Points:
    return tuple((at / unit, loss) for at, loss in points)
