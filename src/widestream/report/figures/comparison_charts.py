"""The charts of a comparison."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from widestream.report import formats
from widestream.report.comparison import Comparison
from widestream.report.figures.chart import Chart, Guide, Mark, Series, Switched, with_room
from widestream.report.figures.names import shorten
from widestream.report.figures.rows import Forest
from widestream.report.league import EQUAL, ranked
from widestream.report.search_record import Search
from widestream.report.stats.groups import Apart, Group, Metric
from widestream.report.stats.intervals import Interval
from widestream.report.stats.matched import RESOURCE_WORDS, RESOURCES, Resource
from widestream.report.stats.pairs import Pair
from widestream.report.verdict import METRIC_NAMES
from widestream.runs.read import Run

EARLY = 0.1
"""Part of a model's training whose losses may leave the frame at the top: its first fall would hide all the rest."""

EARLY_GAP = 0.03
"""The same for differences."""

EXPLODED = 8
"""So many times the range of a usual model a chart is high at most; what lies above leaves the frame."""

LONG = 4
"""A run this many times as long as half of the others makes the x axis a logarithmic one at first."""

AXIS_WORDS: dict[Resource, str] = {
    "tokens": "training tokens",
    "flops": "training FLOPs, logits included",
    "wall_s": "wall time",
}
"""What an axis is called, without its unit."""
_SAVED: dict[Resource, str] = {"tokens": "tokens", "flops": "FLOPs", "wall_s": "time"}


def over_resources(chart: Callable[[Resource], Chart | None]) -> Switched | None:
    """A chart over tokens, FLOPs or time, as a reader likes; None where there is none over any of them."""
    charts = {RESOURCE_WORDS[resource]: one for resource in RESOURCES if (one := chart(resource)) is not None}
    return Switched(charts=charts) if charts else None


def loss_chart(comparison: Comparison, resource: Resource) -> Chart:
    """Held-out loss over one resource: seeds thin, mean thick, and where one model reaches the other's best.

    A run that diverged is dashed and ends in words; it has no part in mean, band, or range.
    """
    ends = [group.curve.axis(resource)[-1] for group in comparison.groups]
    unit, name = unit_of(resource, max(ends))
    lines = [
        line for number, group in enumerate(comparison.groups) for line in _lines(comparison, number, resource, unit)
    ]
    y_range = losses_in_view([curve.points(resource) for group in comparison.groups for curve in group.curves])
    dashed = [
        (run, line)
        for number, model in enumerate((*comparison.groups, *comparison.apart))
        for run in lost_runs(model)
        if (line := lost(run, model.label, number, comparison.metric, resource, unit)).points
    ]
    models = formats.listing(_few([label for label, _ in comparison.models]))
    metric = METRIC_NAMES[comparison.metric]
    return Chart(
        title=f"{metric} against {AXIS_WORDS[resource]}, {models}",
        x_label=f"{AXIS_WORDS[resource]} ({name})",
        y_label=f"{metric} (nats per token)" if comparison.metric == "loss" else metric,
        series=(*lines, *(line for _, line in dashed)),
        y_range=y_range,
        log_x=max(ends) > LONG * sorted(ends)[len(ends) // 2],
        guide=_guide(comparison, resource, unit),
        marks=tuple(end_of(line, run, y_range) for run, line in dashed),
    )


def gap_chart(comparison: Comparison, resource: Resource = "tokens") -> Chart | None:
    """Difference in held-out loss over a resource: over tokens each seed thin, the difference of the means thick.

    None where models are not comparable or were not evaluated over the same stretch.
    """
    pairs = [
        pair for pair in (*comparison.pairs, *comparison.unranked) if pair.gaps[resource] and comparison.comparable
    ]
    if not pairs:
        return None
    end = max(pair.gaps[resource][-1][0] for pair in pairs)
    unit, name = unit_of(resource, end)
    series = []
    for pair in pairs:
        number, label = comparison.groups.index(pair.other), pair.other.label
        if resource == "tokens" and len(pair.gaps_by_seed) > 1:
            series += [
                Series(points=_scaled(line, unit), colour=number, thick=False, model=label, seed=seed)
                for seed, line in zip(pair.by_seed, pair.gaps_by_seed, strict=False)
            ]
        mean = pair.gaps[resource]
        series.append(
            Series(
                points=_scaled(mean, unit),
                colour=number,
                label=label,
                value=formats.signed(mean[-1][1]) if pair.claimed else f"({pair.other.seeds})",
            )
        )
    seen = [gap for line in series for at, gap in line.points if at >= EARLY_GAP * line.points[-1][0]]
    references = {pair.reference.label for pair in pairs}
    reference = references.pop() if len(references) == 1 else "each model's reference"
    marks = [mark for pair in pairs if (mark := _half(comparison, pair, unit))] if resource == "tokens" else []
    return Chart(
        title=f"Difference in {METRIC_NAMES[comparison.metric]} from {reference} over {AXIS_WORDS[resource]}",
        x_label=f"{AXIS_WORDS[resource]} ({name})",
        y_label=f"{METRIC_NAMES[comparison.metric]} minus {reference}'s: below zero is better",
        series=tuple(series),
        y_range=with_room([*seen, 0.0], 0.1, 0.1),
        zero=True,
        marks=tuple(marks),
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
        series.append(Series(points=points, colour=colours[name], label=name))
        x, y = min(points, key=lambda point: point[1])
        marks.append(Mark(x=x, y=y, text=f"best {x:g}", colour=colours[name]))
    return Chart(
        title="Held-out loss of the learning-rate search",
        x_label="peak learning rate",
        y_label="held-out loss at the end of the search run",
        series=tuple(series),
        y_range=with_room([loss for points in drawn.values() for _, loss in points], 0.16, 0.08),
        marks=tuple(marks),
        log_x=True,
    )


def ranking(comparison: Comparison) -> Forest:
    """A row a model in the ranking's order, a panel a resource; below it those out of it, and what became of them."""
    pairs = ranked(comparison)
    remarks = {
        pair.other.label: f"only {formats.count(pair.tokens)} tokens" if pair.claimed else "a seed diverged"
        for pair in comparison.unranked
    }
    remarks |= {one.label: "diverged" if one.diverged else "no figures" for one in comparison.apart}
    panels = {
        EQUAL[resource].partition(" (")[0]: {
            pair.other.label: pair.at_equal[resource] for pair in pairs if resource in pair.at_equal
        }
        for resource in RESOURCES
    }
    metric, reference = METRIC_NAMES[comparison.metric], comparison.groups[0].label
    return Forest(
        title=f"{metric} of {len(pairs)} models minus that of {reference}",
        x_label=f"{'nats' if comparison.metric == 'loss' else 'bits per byte'}; below zero is better",
        names=(*(pair.other.label for pair in pairs), *remarks),
        panels=panels,
        x_range=_differences_in_view([gap for gaps in panels.values() for gap in gaps.values()]),
        unseen={
            EQUAL[resource].partition(" (")[0]: frozenset(pair.other.label for pair in pairs if not pair.seen(resource))
            for resource in RESOURCES
        },
        remarks=remarks,
    )


def losses_in_view(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """The range of losses that shows every model after its first fall, however long it was trained.

    Losses far above those of the usual model leave the frame, so that one that explodes does not flatten the others.
    """
    late = [[loss for at, loss in points if at >= EARLY * points[-1][0] and math.isfinite(loss)] for points in curves]
    late = [losses for losses in late if losses]
    if not late:
        return 0.0, 1.0
    low = min(map(min, late))
    highs = sorted(map(max, late))
    usual = highs[(len(highs) - 1) // 2] - low or 0.1
    high = min(highs[-1], low + EXPLODED * usual)
    spread = high - low or 0.1
    return low - 0.1 * spread, high + 0.04 * spread


def _differences_in_view(gaps: Sequence[Interval]) -> tuple[float, float]:
    """The range of differences that shows all but those far beyond most, intervals included."""
    sizes = sorted(abs(gap.mean) for gap in gaps if math.isfinite(gap.mean))
    most = 2.5 * max(sizes[4 * (len(sizes) - 1) // 5] if sizes else 0.0, 0.01)
    ends = [
        0.0,
        *(end for gap in gaps for end in (gap.mean, gap.low, gap.high) if end is not None and math.isfinite(end)),
    ]
    return with_room([max(min(ends), -most), min(max(ends), most)], 0.05, 0.05)


def lost_runs(model: Group | Apart) -> list[Run]:
    """A model's runs that diverged after an evaluation: they have a curve up to there."""
    runs = model.diverged if isinstance(model, Group) else model.runs
    return [run for run in runs if run.state == "diverged" and any(row.tokens > 0 for row in run.curve)]


def lost(run: Run, model: str, number: int, metric: Metric, resource: Resource, unit: float) -> Series:
    """The curve of a run that diverged, as measured, up to there."""
    rows = [(getattr(row, resource), getattr(row, metric)) for row in run.curve if row.tokens > 0]
    points = tuple((at / unit, loss) for at, loss in rows if loss is not None and math.isfinite(loss))
    return Series(points=points, colour=number, thick=False, broken=True, model=model, seed=run.seed_name)


def end_of(line: Series, run: Run, y_range: tuple[float, float]) -> Mark:
    """Where a run diverged, or where its curve left the frame at the top on the way there."""
    low, high = y_range
    room = 0.06 * (high - low)
    inside = [i for i, (_, loss) in enumerate(line.points) if loss <= high]
    (x, y), after = line.points[inside[-1] if inside else 0], line.points[inside[-1] + 1 :] if inside else ()
    if after:
        x += (after[0][0] - x) * (high - y) / (after[0][1] - y)
        y = high
    where = "" if run.diverged_at is None else f"\nat step {run.diverged_at:,}"
    y = min(max(y, low + room), high - room)
    return Mark(x=x, y=y, text=f"diverged{where}", colour=line.colour, model=line.model, seed=run.seed_name)


def _half(comparison: Comparison, pair: Pair, unit: float) -> Mark | None:
    """The gap at half of training, from which it is said to grow or shrink."""
    if pair.trend is None or not pair.claimed:
        return None
    x, y, number = pair.trend.half_tokens / unit, pair.trend.half, comparison.groups.index(pair.other)
    text, above = f"{formats.signed(y)} halfway", pair.trend.end < y
    return Mark(x=x, y=y, text=text, colour=number, above=above, model=pair.other.label)


def _lines(comparison: Comparison, number: int, resource: Resource, unit: float) -> list[Series]:
    """The seeds of one model, then its mean with a band from the lowest to the highest seed."""
    group, lines = comparison.groups[number], []
    if len(group.curves) > 1:
        lines += [
            Series(
                points=curve.points(resource, unit),
                colour=number,
                thick=False,
                model=group.label,
                seed=run.seed_name,
                measured=_measured([run], curve.tokens, comparison.metric),
            )
            for run, curve in zip(group.runs, group.curves, strict=True)
        ]
    return [*lines, _mean(comparison, group, resource, unit, number)]


def _mean(comparison: Comparison, group: Group, resource: Resource, unit: float, colour: int) -> Series:
    """The mean of a model's seeds."""
    return Series(
        points=group.curve.points(resource, unit),
        colour=colour,
        label=group.label,
        value=formats.loss(group.curve.loss[-1]) if group.claimable else f"({group.seeds})",
        band=_band(group, resource, unit),
        measured=_measured(group.runs, group.curve.tokens, comparison.metric),
    )


def _measured(runs: Sequence[Run], tokens: Sequence[float], metric: Metric) -> tuple[float, ...]:
    """Mean over runs of what was measured at each number of tokens, before smoothing."""
    by_tokens = [{float(row.tokens): getattr(row, metric) for row in run.curve} for run in runs]
    return tuple(fmean(losses[at] for losses in by_tokens) for at in tokens)


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
    """Where, of two models, the better one reaches the other's best loss; nothing where a seed diverged."""
    if len(comparison.models) != 2 or len(comparison.pairs) != 1:
        return None
    pair = comparison.pairs[0]
    if not (comparison.comparable and pair.claimed):
        return None
    target = max(pair.targets, key=lambda target: target.loss)
    ratio = target.ratio(resource)
    if target.others is None or ratio is None or target.others.at_most or 0.97 < ratio < 1.03:
        return None
    start, end = sorted((getattr(target.others, resource) / unit, getattr(target.own, resource) / unit))
    short = shorten([group.label for group in comparison.groups], 24)[target.other]
    return Guide(
        y=target.loss,
        start=start,
        end=end,
        text=f"{short}: {formats.percent(ratio)} of the {_SAVED[resource]}",
        colour=[group.label for group in comparison.groups].index(target.other if ratio < 1 else target.label),
    )


def _scaled(points: Sequence[tuple[float, float]], unit: float) -> tuple[tuple[float, float], ...]:
    return tuple((at / unit, value) for at, value in points)


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= 6 else [*names[:5], f"{len(names) - 5} others"]


def unit_of(resource: Resource, end: float) -> tuple[float, str]:
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
