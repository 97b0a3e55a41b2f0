"""The health of streams over training: what the monitor (`train.watch_every`) has written, as charts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from widestream.report.comparison import Comparison
from widestream.report.figures.chart import Chart, Series, Switched, with_room
from widestream.report.figures.comparison_charts import AXIS_WORDS, unit_of
from widestream.runs.read import Run

Points = tuple[tuple[float, float], ...]

STEEP = 20.0
"""Numbers that are this many times as large as others are drawn on a logarithmic axis at first."""

_SITES: dict[str, Callable[[Sequence[float]], float]] = {
    "last site": lambda values: values[-1],
    "middle": lambda values: values[len(values) // 2],
    "first": lambda values: values[0],
}
"""Which of a list that goes by site."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthChart:
    """A chart, its name, and what it says."""

    name: str
    """What is drawn."""
    says: str
    """How it is to be read."""
    figure: Switched
    """By site, or by direction."""


@dataclass(frozen=True, slots=True)
class _View:
    """One curve that can be drawn of every look."""

    of: str
    """Name of the figures in a row."""
    pick: Callable[[Sequence[float]], float] = _SITES["last site"]
    """Which of them."""


@dataclass(frozen=True, slots=True)
class _Quantity:
    """What one chart shows."""

    name: str
    says: str
    unit: str
    """What the axis counts."""
    views: dict[str, _View]


def _by_site(of: str, words: Sequence[str]) -> dict[str, _View]:
    return {word: _View(of, _SITES[word]) for word in words}


_QUANTITIES = (
    _Quantity(
        "Size of the stream",
        "What a reader sees, in front of its norm. The last site is the head's, the first behind the embedding.",
        "root mean square",
        _by_site("state_rms", ("last site", "middle", "first")),
    ),
    _Quantity(
        "Gain of the depth",
        "Forward: the stream's size at the head over that behind the embedding. Backward: the loss's gradient by what "
        "the embedding wrote over that by what the last block wrote. A gain that runs away, up or down, is a warning.",
        "ratio",
        {"forward": _View("forward_gain"), "backward": _View("backward_gain")},
    ),
    _Quantity(
        "Gradient by what is written",
        "Of the loss, times tokens: how much a change of what a block writes would move it.",
        "root mean square",
        _by_site("written_grad_rms", ("first", "middle", "last site")),
    ),
    _Quantity(
        "Size of a write",
        "Over the stream's size behind it. Near zero the block hardly changes what is read after it.",
        "ratio",
        _by_site("update", ("last site", "middle")),
    ),
    _Quantity("Largest logit", "In absolute value.", "logit", {"": _View("largest_logit")}),
    _Quantity(
        "Likeness of lanes",
        "Mean cosine between the lanes of a token. At 1 at every site they carry one vector between them.",
        "cosine",
        {"least over sites": _View("lanes_alike", min), "last site": _View("lanes_alike")},
    ),
    _Quantity(
        "Rows in use",
        "Part of a matrix stream's rows that is in use: exp of the entropy of their squared norms, over their number.",
        "part of the rows",
        _by_site("rows_in_use", ("last site", "middle", "first")),
    ),
)


def health_charts(comparison: Comparison) -> list[HealthChart]:
    """Charts over training tokens of what was seen of streams; none where no run was watched."""
    looks = [run.looks[-1].tokens for run in comparison.runs if run.looks]
    if not looks:
        return []
    unit, word = unit_of("tokens", max(looks))
    charts = []
    for quantity in _QUANTITIES:
        views = {
            name: _chart(quantity, name, series, word)
            for name, view in quantity.views.items()
            if (series := _series(comparison, view, unit))
        }
        if views:
            charts.append(HealthChart(name=quantity.name, says=quantity.says, figure=Switched(charts=views)))
    return charts


def _chart(quantity: _Quantity, view: str, series: Sequence[Series], unit: str) -> Chart:
    values = [y for line in series for _, y in line.points]
    low, high = min(values), max(values)
    steep = 0 < STEEP * low < high
    name = f"{quantity.name}, {view}" if view else quantity.name
    return Chart(
        title=f"{name}, over {AXIS_WORDS['tokens']}",
        x_label=f"{AXIS_WORDS['tokens']} ({unit})",
        y_label=f"{name} ({quantity.unit})",
        series=tuple(series),
        y_range=(0.8 * low, 1.25 * high) if steep else with_room(values, 0.08, 0.08),
        log_y=steep,
    )


def _series(comparison: Comparison, view: _View, unit: float) -> list[Series]:
    """Runs and means of every model that was watched."""
    return [
        line
        for number, (label, runs) in enumerate(comparison.models)
        for line in _lines(label, number, runs, view, unit)
    ]


def _lines(label: str, number: int, runs: Sequence[Run], view: _View, unit: float) -> list[Series]:
    """A model's seeds and their mean; runs that diverged are dashed and count in no mean."""
    drawn = [(run, points) for run in runs if (points := _points(run, view, unit))]
    counted = [points for run, points in drawn if run.state != "diverged"]
    mean = _mean(counted)
    lines = [
        Series(
            points=points,
            colour=number,
            thick=False,
            broken=run.state == "diverged",
            model=label,
            seed=run.seed_name,
        )
        for run, points in drawn
        if run.state == "diverged" or len(counted) > 1
    ]
    if mean:
        lines.append(Series(points=mean, colour=number, label=label, value=f"{mean[-1][1]:.3g}"))
    return lines


def _mean(lines: Sequence[Points]) -> Points:
    """Over the numbers of tokens at which all were looked at."""
    by_tokens = [dict(line) for line in lines]
    common = [at for at, _ in lines[0] if all(at in one for one in by_tokens)] if lines else []
    return tuple((at, fmean(one[at] for one in by_tokens)) for at in common)


def _points(run: Run, view: _View, unit: float) -> Points:
    """A run's curve, without looks that were not finite."""
    found = ((look.tokens / unit, view.pick(look.values[view.of])) for look in run.looks if view.of in look.values)
    return tuple((at, value) for at, value in found if math.isfinite(value))
