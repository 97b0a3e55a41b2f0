"""The record of a coordinate check (`widestream mup check`) as sentences, a table, charts and a page."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeGuard

from widestream.files import write_page
from widestream.report.figures.chart import Chart, Series
from widestream.report.figures.pictures import write_pictures
from widestream.report.formats import listing
from widestream.report.page import render_page
from widestream.report.stats.fits import slope_of
from widestream.report.table import NONE, Table

NAMES = {"mup": "with muP", "standard": "without muP"}
"""What the two parametrizations are called."""
HIGHEST = 6.0
"""Most doublings that a chart shows in either direction."""

Record = dict[str, Any]
"""What `run_check` (experiments/mup/measure.py) returns."""


KINDS = ("size", "change")
"""What is judged of a quantity: its size, and how far training moved it."""
UNJUDGED = ("logits", "size")
"""Has no verdict: without a zero unembedding it shrinks at initialisation, and rightly so."""


def outcome(record: Record, way: str) -> str:
    """`flat` if every judged slope is; `not flat` if one is seen to grow or shrink; `diverged`; else `unclear`."""
    if diverged_at(record, way):
        return "diverged"
    found = {verdict for _, verdict in _judged(record, way)}
    if found == {"flat"}:
        return "flat"
    return "unclear" if found <= {"flat", "unclear"} else "not flat"


def diverged_at(record: Record, way: str) -> list[int]:
    """Widths at which some size was not finite any more after the last step, whatever the seed."""
    tables = [steps[-1] for kind in KINDS for steps in record["results"][way][kind].values()]
    return [width for number, width in enumerate(record["widths"]) if any(None in table[number] for table in tables)]


def sentences(record: Record) -> list[str]:
    """The verdict on both parametrizations, first the one that matters."""
    found = [f"{record['recipe']} {name}: {_in_words(record, way)}." for way, name in NAMES.items()]
    widths, bounds = record["widths"], record["bounds"]
    found.append(
        f"Widths {listing([str(width) for width in widths])} ({', '.join(record['grow'])} grow), "
        f"{record['settings']['steps']} optimizer steps at {record['lr']:g}, {record['settings']['seeds']} seeds. "
        "Flat: the 95 % interval of the slope of log size against log width lies within [{:g}, {:g}], ".format(
            *bounds["size"]
        )
        + "that of its change from initialisation within [{:g}, {:g}]; it grows or shrinks where the interval lies "
        "outside, and is unclear where it holds a bound.".format(*bounds["change"])
    )
    return found


def _in_words(record: Record, way: str) -> str:
    found, slopes = outcome(record, way), record["results"][way]["slopes"]
    if found == "flat":
        return f"flat across widths ({_farthest(slopes)})"
    if found == "diverged":
        widths = listing([str(width) for width in diverged_at(record, way)])
        return f"training diverged at width {widths}, so that nothing can be judged; choose a lower --rate"
    off = [f"{words} {verdict}" for words, verdict in _judged(record, way) if verdict not in ("flat", "unclear")]
    unclear = [words for words, verdict in _judged(record, way) if verdict == "unclear"]
    if found == "not flat":
        return f"not flat: {listing(off)}"
    return f"nothing is seen to grow or shrink, yet {listing(unclear)} may: more seeds would tell"


def _judged(record: Record, way: str) -> list[tuple[str, str]]:
    """Every judged slope in words, with its verdict."""
    return [
        (f"{kind} of {quantity} ({_slope(row[kind])})", verdict)
        for quantity, row in record["results"][way]["slopes"].items()
        for kind in KINDS
        if (verdict := verdict_of(record, way, quantity, kind)) is not None
    ]


def verdict_of(record: Record, way: str, quantity: str, kind: str) -> str | None:
    """The verdict on one slope; None where there is none to give."""
    if (quantity, kind) == UNJUDGED:
        return None
    return verdict(record["results"][way]["slopes"][quantity][kind], record["bounds"][kind])


def verdict(slope: dict[str, Any], bounds: Sequence[float]) -> str:
    """What the interval of a slope (`mean`, `low`, `high`) says.

    `flat` if it lies within the bounds, `grows` or `shrinks` if outside, `unclear` if it holds one of them or if one
    seed gives none; `diverged` if there is no slope.
    """
    low, high = bounds
    if slope["mean"] is None:
        return "diverged"
    if slope["low"] is None:
        return "unclear"
    if low <= slope["low"] and slope["high"] <= high:
        return "flat"
    return "shrinks" if slope["high"] < low else "grows" if slope["low"] > high else "unclear"


def _farthest(slopes: dict[str, Any]) -> str:
    """The slope that lies farthest from zero among those that are judged."""
    judged = [
        (abs(row[kind]["mean"]), f"farthest: {kind} of {quantity} {_slope(row[kind])}")
        for quantity, row in slopes.items()
        for kind in KINDS
        if (quantity, kind) != UNJUDGED
    ]
    return max(judged)[1]


def slopes_table(record: Record) -> Table:
    """Slopes of every quantity at the last step, under both parametrizations."""
    rows = []
    for quantity in record["results"]["mup"]["slopes"]:
        cells = [quantity]
        for way in NAMES:
            row = record["results"][way]["slopes"][quantity]
            for kind in KINDS:
                cells += [_slope(row[kind]), verdict_of(record, way, quantity, kind) or NONE]
        rows.append(tuple(cells))
    columns = [f"{kind} {name}" for name in NAMES.values() for kind in KINDS]
    return Table(
        title=f"Slopes over width, {record['recipe']}",
        caption="Slope of the logarithm of the mean absolute activation, and of its change from initialisation, over "
        "the logarithm of width after the last step; mean over seeds, 95 % interval. The logits' size is not judged: "
        "at initialisation it may shrink.",
        columns=("quantity", *(cell for column in columns for cell in (column, "verdict"))),
        rows=tuple(rows),
    )


def charts(record: Record, kind: str = "change") -> dict[str, Chart]:
    """Doublings of size (or change) over width from the smallest, one chart a parametrization, of one range."""
    lines = {
        name: tuple(
            _line(quantity, number, record["widths"], record["results"][way][kind][quantity][-1])
            for number, quantity in enumerate(record["results"][way]["slopes"])
        )
        for way, name in NAMES.items()
        if len(diverged_at(record, way)) < len(record["widths"]) - 1
    }
    ends = [y for series in lines.values() for one in series for _, y in one.points]
    return {
        name: Chart(
            title=f"Coordinate check of {record['recipe']} {name}",
            x_label="width",
            y_label=f"doublings of {kind} after the last step, {name}",
            series=series,
            y_range=(max(-HIGHEST, min(-1.0, *ends)) - 0.2, min(HIGHEST, max(1.0, *ends)) + 0.2),
            log_x=True,
            zero=True,
        )
        for name, series in lines.items()
    }


def step_table(record: Record) -> Table:
    """Slopes of sizes at every step, under both parametrizations."""
    widths, rows = record["widths"], []
    for way, name in NAMES.items():
        for quantity, steps in record["results"][way]["size"].items():
            slopes = [[slope(widths, sizes) for sizes in zip(*step, strict=True)] for step in steps]
            rows.append((f"{quantity}, {name}", *map(_mean_slope, slopes)))
    steps = record["settings"]["steps"]
    return Table(
        title="Slopes of sizes step by step",
        caption="",
        columns=("quantity", *(f"step {step}" for step in range(steps + 1))),
        rows=tuple(rows),
    )


def page(record: Record) -> str:
    """The check as one HTML document."""
    return render_page(
        "mup_page.html",
        record=record,
        sentences=sentences(record),
        charts={
            f"{what}, {name}": chart
            for kind, what in (("change", "Change from initialisation"), ("size", "Size"))
            for name, chart in charts(record, kind).items()
        },
        slopes=slopes_table(record),
        steps=step_table(record),
    )


def write_check(record: Record, out: Path) -> list[Path]:
    """Write the page, if `out` ends in .html, or the picture OUT-light.svg and OUT-dark.svg; returns the paths."""
    if out.suffix == ".html":
        write_page(out, page(record))
        return [out]
    pictures = list(charts(record).values())  # none where training diverged at every width
    return write_pictures(out, pictures, " ".join(sentences(record)[:2])) if pictures else []


def _slope(row: dict[str, Any]) -> str:
    if row["mean"] is None:
        return NONE
    ends = "" if row["low"] is None else f" ({row['low']:+.2f} to {row['high']:+.2f})"
    return f"{row['mean']:+.2f}{ends}".replace("-", "−")


def _mean_slope(slopes: Sequence[float | None]) -> str:
    known = [one for one in slopes if one is not None]
    return f"{fmean(known):+.2f}".replace("-", "−") if len(known) == len(slopes) else NONE


def _line(quantity: str, colour: int, widths: list[int], rows: list[list[float]]) -> Series:
    """Mean over seeds of log2 of size over size at the smallest width, and the range over seeds, where finite."""
    whole = [number for number, row in enumerate(rows) if None not in row]
    widths, rows = [widths[number] for number in whole], [rows[number] for number in whole]
    doublings = [
        [math.log2(positive(size) / positive(base)) for size, base in zip(row, rows[0], strict=True)] for row in rows
    ]
    places = list(zip(map(float, widths), doublings, strict=True))
    return Series(
        points=tuple((width, fmean(values)) for width, values in places),
        colour=colour,
        label=quantity,
        band=tuple((width, min(values), max(values)) for width, values in places),
        titles=tuple(f"mean {fmean(row):.3g}" for row in rows),
    )


def slope(widths: Sequence[int], sizes: Sequence[float | None]) -> float | None:
    """Least-squares slope of log size against log width; None where a size is not finite."""
    points = [(math.log(w), math.log(positive(size))) for w, size in zip(widths, sizes, strict=True) if _finite(size)]
    return slope_of(points) if len(points) == len(widths) else None


def _finite(size: float | None) -> TypeGuard[float]:
    return size is not None and math.isfinite(size)


def positive(size: float) -> float:
    """A size that has a logarithm; one of zero has none."""
    return max(size, 1e-12)
