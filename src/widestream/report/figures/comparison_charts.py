"""The charts of a comparison."""

import math
from collections.abc import Sequence

from widestream.report import formats
from widestream.report.comparison import Comparison
from widestream.report.figures.svg import Chart, Guide, Mark, Series
from widestream.report.search_record import Search
from widestream.report.stats.groups import Group
from widestream.report.stats.matched import Curve, Resource
from widestream.report.stats.pairs import Pair, Target
from widestream.report.verdict import METRIC_NAMES

EARLY = 0.1
"""Part of training whose losses may leave the frame at the top: the fall from the start would hide all the rest."""

EARLY_GAP = 0.03
"""The same for differences."""

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
    seen = [
        loss
        for group in comparison.groups
        for curve in group.curves
        for at, loss in zip(curve.axis(resource), curve.loss, strict=True)
        if at >= EARLY * end
    ]
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
    margin = 0.1 * (max(seen) - min(seen) or 1.0)
    reference = pairs[0].reference.label
    return Chart(
        title=f"Difference in {METRIC_NAMES[comparison.metric]} from {reference} over training tokens",
        x_label=f"{_WORDS['tokens']} ({name})",
        y_label=f"{METRIC_NAMES[comparison.metric]} minus {reference}'s: below zero is better",
        series=tuple(series),
        y_range=(min(seen) - margin, max(seen) + margin),
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
    margin = 0.08 * (max(seen) - min(seen) or 1.0)
    return Chart(
        title="Held-out loss of the learning-rate search",
        x_label="peak learning rate",
        y_label="held-out loss at the end of the search run",
        series=tuple(series),
        y_range=(min(seen) - 2 * margin, max(seen) + margin),
        marks=tuple(marks),
        log_x=True,
    )


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
        lines += [Series(points=_points(curve, resource, unit), colour=number, thick=False) for curve in group.curves]
    titles = tuple(
        f"{group.label}, {_amount(resource, at)}: {formats.loss(loss)}"
        for at, loss in zip(group.curve.axis(resource), group.curve.loss, strict=True)
    )
    mean = Series(
        points=_points(group.curve, resource, unit),
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
    places = sorted((getattr(target.others, resource) / unit, getattr(target.own, resource) / unit))
    return Guide(
        y=target.loss,
        start=places[0],
        end=places[1],
        text=f"{target.other}: {formats.percent(ratio)} of the {_SAVED[resource]}",
        colour=_first_across(comparison, target, ratio),
    )


def _first_across(comparison: Comparison, target: Target, ratio: float) -> int:
    labels = [group.label for group in comparison.groups]
    return labels.index(target.other if ratio < 1 else target.label)


def _points(curve: Curve, resource: Resource, unit: float) -> tuple[tuple[float, float], ...]:
    return tuple((at / unit, loss) for at, loss in zip(curve.axis(resource), curve.loss, strict=True))


def _scaled(points: Sequence[tuple[float, float]], unit: float) -> tuple[tuple[float, float], ...]:
    return tuple((at / unit, value) for at, value in points)


def _amount(resource: Resource, amount: float) -> str:
    if resource == "tokens":
        return f"{formats.count(amount)} tokens"
    return f"{formats.flops(amount)} FLOPs" if resource == "flops" else formats.duration(amount)


def scaled_axis(resource: Resource, end: float) -> tuple[float, str]:
    """What an axis over a resource counts in, and its name with that unit."""
    unit, name = _unit(resource, end)
    return unit, f"{_WORDS[resource]} ({name})"


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
