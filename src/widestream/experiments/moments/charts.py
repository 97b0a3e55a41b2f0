"""Charts of the study of moment propagation, from its record (`experiments/moments/measure.py`)."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from widestream.experiments.moments.section import Record, by_name, by_span, by_step, deepest, run_figures
from widestream.report.figures.chart import Chart, Series, with_room
from widestream.report.formats import three

HIGHLIGHTED = ("vector", "matrix")
"""Streams with a colour and a name in a chart of all: the plain transformer's and RMT's."""
GREY = 5
WORDS = {"seen": "stream as readers see it", "written_gradient": "gradient of what blocks write"}
FIGURES = {
    "seen growth": "growth of the stream over depth",
    "gradient growth": "growth of the gradient over depth",
    "gradient of writes": "gradient of writes (root mean square)",
    "rank of the stream": "effective rank of the stream",
    "rank of reads": "effective rank of reads",
}


def moments_charts(record: Record) -> list[Chart]:
    """The charts of a record: moments over depth of all streams at the deepest, and what training does to them."""
    depth, training = record.get("depth", ()), record.get("training", ())
    scalings = dict.fromkeys(entry["depth_scale"] for entry in depth)
    charts = [depth_chart(depth, quantity, scaled) for scaled in scalings for quantity in WORDS]
    charts += [training_chart(training, figure) for figure in FIGURES] if training else []
    charts += [update_chart(training)] if training else []
    return [chart for chart in charts if chart is not None]


def depth_chart(depth: Sequence[Record], quantity: str, scaled: bool) -> Chart | None:
    """log10 of a second moment over the sites of the deepest models, relative to where it comes from; all streams."""
    chosen = sorted(deepest(depth, scaled), key=lambda entry: entry["stream"] in HIGHLIGHTED)
    layers = chosen[0]["layers"]
    series = []
    for entry in chosen:
        name, points = entry["stream"], _relative(entry, quantity)
        if not points:
            continue
        marked = name in HIGHLIGHTED
        series.append(
            Series(
                points=points,
                colour=HIGHLIGHTED.index(name) if marked else GREY,
                label=name if marked else None,
                thick=marked,
                model=name,
                titles=tuple(f"{three(10**y)} times" for _, y in points),
            )
        )
    if not series:
        return None
    start = "scaled" if scaled else "unscaled"
    return Chart(
        title=f"{WORDS[quantity]} over depth, {layers} layers, output maps {start}",
        x_label=f"site, {layers} layers, output maps {start}",
        y_label=f"second moment (log10), {WORDS[quantity]}",
        series=tuple(series),
        y_range=with_room([0.0, *(y for line in series for _, y in line.points)], 0.06, 0.06),
        zero=True,
    )


def training_chart(training: Sequence[Record], figure: str) -> Chart | None:
    """A figure of `run_figures` over training steps: mean over seeds, band from the lowest to the highest."""
    series = []
    for colour, (name, runs) in enumerate(by_name(training).items()):
        rows = [
            (number, [run_figures(run, step)[figure] for run, step in measured])
            for number, measured in by_step(runs).items()
        ]
        series.append(_over_steps(name, colour, [(step, values) for step, values in rows if None not in values]))
    return _steps_chart(FIGURES[figure], series)


def update_chart(training: Sequence[Record]) -> Chart | None:
    """Relative change of parameters a step between checkpoints, mean over parts, over training steps."""
    series = []
    for colour, (name, runs) in enumerate(by_name(training).items()):
        rows = []
        for (start, end), updates in by_span(runs).items():
            known = [[v for v in update["relative"].values() if v is not None] for update in updates]
            rows.append((end, [fmean(values) / (end - start) for values in known if values]))
        series.append(_over_steps(name, colour, rows))
    return _steps_chart("relative change of parameters a step, mean over parts", series)


def _over_steps(name: str, colour: int, rows: Sequence[tuple[int, list[Any]]]) -> Series:
    return Series(
        points=tuple((step, fmean(values)) for step, values in rows),
        colour=colour,
        label=name,
        value=three(fmean(rows[-1][1])) if rows else "",
        band=tuple((step, min(values), max(values)) for step, values in rows),
    )


def _steps_chart(what: str, series: Sequence[Series]) -> Chart | None:
    drawn = tuple(line for line in series if len(line.points) > 1)
    if not drawn:
        return None
    ends = [y for line in drawn for _, low, high in line.band for y in (low, high)]
    return Chart(
        title=f"{what} over training steps",
        x_label="training steps",
        y_label=what,
        series=drawn,
        y_range=with_room(ends, 0.08, 0.08),
    )


def _relative(entry: Mapping[str, Any], quantity: str) -> tuple[tuple[float, float], ...]:
    """(site, log10 of the moment over its value where it comes from: the first block's write, or the last one's)."""
    means = [site[0] for site in entry["sites"][quantity]]
    start = means[1] if quantity == "seen" else means[-2]
    if not start:
        return ()
    between = list(enumerate(means))[1:-1]
    return tuple((site, math.log10(mean / start)) for site, mean in between if mean)
