"""The charts of a comparison."""

import math
from collections.abc import Sequence

from widestream.report import formats
from widestream.report.comparison import Comparison
from widestream.report.figures.scales import with_room
from widestream.report.figures.svg import Chart, Guide, Mark, Series
from widestream.report.league import ranked
from widestream.report.search_record import Search
from widestream.report.stats.groups import Group
from widestream.report.stats.matched import Resource
from widestream.report.stats.pairs import Pair
from widestream.report.verdict import METRIC_NAMES

EARLY = 0.1
"""Part of training whose losses may leave the frame at the top: the fall from the start would hide all the rest."""

EARLY_GAP = 0.03
"""The same for differences."""

GREY = 5
"""Colour of the reference among many."""

_WORDS: dict[Resource, str] = {
    "tokens": "training tokens",
    "flops": "training FLOPs, logits included",
    "wall_s": "wall time",
}
_SAVED: dict[Resource, str] = {"tokens": "tokens", "flops": "FLOPs", "wall_s": "time"}


def loss_chart(comparison: Comparison, resource: Resource) -> Chart:
    """Held-out loss over one resource: seeds thin, mean thick, and where one model reaches the other's best."""
    end = max(group.curve.axis(resource)[-1] for group in comparison.groups)
    unit, name = _unit(resource, end)
    series = [line for number, group in enumerate(comparison.groups) for line in _lines(group, number, resource, unit)]
    curves = [curve for group in comparison.groups for curve in group.curves]
    seen = [loss for curve in curves for at, loss in curve.points(resource) if at >= EARLY * end]
    low, high = min(seen), max(seen)
    spread = high - low or 0.1
    metric = METRIC_NAMES[comparison.metric]
    return Chart(
        title=f"{metric} against {_WORDS[resource]}, {formats.listing([group.label for group in comparison.groups])}",
        x_label=f"{_WORDS[resource]} ({name})",
        y_label=f"{metric} (nats per token)" if comparison.metric == "loss" else metric,
        series=tuple(series),
        y_range=(low - 0.14 * spread, high + 0.04 * spread),
        guide=_guide(comparison, resource, unit),
    )


def gap_chart(comparison: Comparison) -> Chart | None:
    """Difference in held-out loss over training tokens: each seed thin, the difference of the mean curves thick.

    None where models are not comparable or were not evaluated over the same stretch.
    """
    pairs = [pair for pair in comparison.pairs if pair.gaps["tokens"] and comparison.comparable]
    if not pairs:
        return None
    end = max(pair.gaps["tokens"][-1][0] for pair in pairs)
    unit, name = _unit("tokens", end)
    series = []
    for pair in pairs:
        number = comparison.groups.index(pair.other)
        if len(pair.gaps_by_seed) > 1:
            series += [Series(points=_scaled(line, unit), colour=number, thick=False) for line in pair.gaps_by_seed]
        mean = pair.gaps["tokens"]
        titles = tuple(f"{pair.other.label}, {formats.count(at)} tokens: {formats.signed(gap)}" for at, gap in mean)
        label, value = pair.other.label, formats.signed(mean[-1][1])
        series.append(Series(points=_scaled(mean, unit), colour=number, label=label, value=value, titles=titles))
    seen = [gap for line in series for at, gap in line.points if at * unit >= EARLY_GAP * end] + [0.0]
    reference = pairs[0].reference.label
    return Chart(
        title=f"Difference in {METRIC_NAMES[comparison.metric]} from {reference} over training tokens",
        x_label=f"{_WORDS['tokens']} ({name})",
        y_label=f"{METRIC_NAMES[comparison.metric]} minus {reference}'s: below zero is better",
        series=tuple(series),
        y_range=with_room(seen, 0.1, 0.1),
        zero=True,
        marks=tuple(mark for pair in pairs if (mark := _half(comparison, pair, unit))),
    )


def search_chart(search: Search, colours: dict[str, int]) -> Chart | None:
    """Held-out loss over the peak learning rate; None where there are not two rates to draw a line through."""
    drawn = {
        name: points
        for name, trials in search.models.items()
        if len(points := tuple((trial.lr, trial.mean) for trial in trials if trial.mean is not None)) > 1
    }
    if not drawn:
        return None
    series, marks = [], []
    for name, points in drawn.items():
        titles = tuple(f"{name}, peak rate {lr:g}: {formats.loss(loss)}" for lr, loss in points)
        series.append(Series(points=points, colour=colours[name], label=name, titles=titles))
        x, y = min(points, key=lambda point: point[1])
        marks.append(Mark(x=x, y=y, text=f"best {x:g}", colour=colours[name]))
    seen = [loss for points in drawn.values() for _, loss in points]
    return Chart(
        title="Held-out loss of the learning-rate search",
        x_label="peak learning rate",
        y_label="held-out loss at the end of the search run",
        series=tuple(series),
        y_range=with_room(seen, 0.16, 0.08),
        marks=tuple(marks),
        log_x=True,
    )


def small_charts(comparison: Comparison, resource: Resource) -> list[Chart]:
    """Every model of a league beside the reference, in the ranking's order; all charts have the same axes."""
    groups = comparison.groups
    end = max(group.curve.axis(resource)[-1] for group in groups)
    unit, name = _unit(resource, end)
    seen = [loss for group in groups for at, loss in group.curve.points(resource) if at >= EARLY * end]
    low = min(seen)
    high = min(max(seen), low + 8 * max(groups[0].curve.best - low, 0.1))
    charts = []
    for pair in ranked(comparison):
        gap = formats.signed(pair.at_equal[resource].mean) if resource in pair.at_equal else ""
        chart = Chart(
            title=f"{pair.other.label} and {pair.reference.label} over {_WORDS[resource]} ({name})",
            x_label=f"{_WORDS[resource]} ({name})",
            y_label=f"{pair.other.label} {gap}",
            series=(_small_line(pair.reference, resource, unit, GREY), _small_line(pair.other, resource, unit, 0)),
            y_range=(low - 0.05 * (high - low), high),
        )
        charts.append(chart)
    return charts


def _small_line(group: Group, resource: Resource, unit: float, colour: int) -> Series:
    titles = tuple(f"{group.label}: {formats.loss(loss)}" for loss in group.curve.loss)
    return Series(points=group.curve.points(resource, unit), colour=colour, titles=titles)


def _half(comparison: Comparison, pair: Pair, unit: float) -> Mark | None:
    """The gap at half of training, from which it is said to grow or shrink."""
    if pair.trend is None:
        return None
    x, y, number = pair.trend.half_tokens / unit, pair.trend.half, comparison.groups.index(pair.other)
    return Mark(x=x, y=y, text=f"{formats.signed(y)} halfway", colour=number, above=pair.trend.end < y)


def _lines(group: Group, number: int, resource: Resource, unit: float) -> list[Series]:
    """The seeds of one model, then its mean with a band from the lowest to the highest seed."""
    lines = []
    if len(group.curves) > 1:
        lines += [Series(points=curve.points(resource, unit), colour=number, thick=False) for curve in group.curves]
    counted = {"tokens": " tokens", "flops": " FLOPs", "wall_s": ""}[resource]
    titles = tuple(
        f"{group.label}, {formats.AMOUNTS[resource](at)}{counted}: {formats.loss(loss)}"
        for at, loss in group.curve.points(resource)
    )
    mean = Series(
        points=group.curve.points(resource, unit),
        colour=number,
        label=group.label,
        value=formats.loss(group.curve.loss[-1]),
        band=_band(group, resource, unit),
        titles=titles,
    )
    return [*lines, mean]


def _band(group: Group, resource: Resource, unit: float) -> tuple[tuple[float, float, float], ...]:
    if len(group.curves) < 2:
        return ()
    by_tokens = [dict(zip(curve.tokens, curve.loss, strict=True)) for curve in group.curves]
    return tuple(
        (at / unit, min(losses), max(losses))
        for at, tokens in zip(group.curve.axis(resource), group.curve.tokens, strict=True)
        if (losses := [curve[tokens] for curve in by_tokens])
    )


def _guide(comparison: Comparison, resource: Resource, unit: float) -> Guide | None:
    """Where, of two models, the better one reaches the other's best loss."""
    if len(comparison.pairs) != 1 or len(comparison.groups) != 2 or not comparison.comparable:
        return None
    target = max(comparison.pairs[0].targets, key=lambda target: target.loss)
    ratio = target.ratio(resource)
    if target.others is None or ratio is None or target.others.at_most or 0.97 < ratio < 1.03:
        return None
    start, end = sorted((getattr(target.others, resource) / unit, getattr(target.own, resource) / unit))
    return Guide(
        y=target.loss,
        start=start,
        end=end,
        text=f"{target.other}: {formats.percent(ratio)} of the {_SAVED[resource]}",
        colour=[group.label for group in comparison.groups].index(target.other if ratio < 1 else target.label),
    )


def _scaled(points: Sequence[tuple[float, float]], unit: float) -> tuple[tuple[float, float], ...]:
    return tuple((at / unit, value) for at, value in points)


def _unit(resource: Resource, end: float) -> tuple[float, str]:
    """What an axis counts in, and the unit's name."""
    if resource == "wall_s":
        return next(
            ((size, name) for size, name in ((3600.0, "hours"), (60.0, "minutes")) if end >= 2 * size), (1.0, "s")
        )
    if resource == "tokens":
        units = ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
        return next(((size, name) for size, name in units if end >= 2 * size), (1.0, "tokens"))
    size = 10.0 ** math.floor(math.log10(end / 2))
    return size, f"×{formats.power(size)}"
