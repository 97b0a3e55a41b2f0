"""Lines as columns, as a page keeps them: each column once, however many charts share it.

In rows, as a specification reads them: `m` model, `s` seed, `k` line, `x`, `y`, `c` colour, `d` dash, `t` 1 for a mean,
`f` 1 for a line whose points are dots.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from widestream.report.figures.axes import Spec
from widestream.report.figures.chart import Series
from widestream.report.figures.themes import BROKEN, look
from widestream.report.figures.thin import thinned
from widestream.report.formats import visible

FEW = 12
"""Up to so many points, each is shown as a dot: there is more line than measurement."""


def finite(series: Series) -> Series:
    """A line without the points that cannot be drawn."""
    kept = [i for i, point in enumerate(series.points) if all(map(math.isfinite, point))]
    return series if len(kept) == len(series.points) else _only(series, kept)


def fewer(series: Series, most: int) -> Series:
    """A line of at most so many points."""
    kept = thinned([y for _, y in series.points], most)
    return series if len(kept) == len(series.points) else _only(series, kept)


def _only(series: Series, kept: Sequence[int]) -> Series:
    """Some points of a line, and what belongs to them."""
    xs = {series.points[i][0] for i in kept}
    return replace(
        series,
        points=tuple(series.points[i] for i in kept),
        titles=tuple(series.titles[i] for i in kept) if series.titles else (),
        measured=tuple(series.measured[i] for i in kept) if series.measured else (),
        band=tuple(edge for edge in series.band if edge[0] in xs),
    )


def columns_of(series: Series) -> Spec:
    """A line as columns: `x`, `y`, and where it has them `o` (as measured), `n` (names of points) and `band`."""
    colour, dash = look(series.colour)
    columns: Spec = {
        "m": visible(series.name),
        "s": visible(series.seed),
        "c": colour,
        "d": BROKEN if series.broken else dash,
        "t": int(series.thick),
        "f": int(dotted(series)),
        "x": [_short(x) for x, _ in series.points],
        "y": [_short(y) for _, y in series.points],
    }
    if series.measured:
        columns["o"] = [_short(value) for value in series.measured]
    if series.titles:
        columns["n"] = [visible(title) for title in series.titles]
    if series.band:
        columns["band"] = {name: [_short(edge[i]) for edge in series.band] for i, name in enumerate(("x", "lo", "hi"))}
    return columns


def _short(value: float) -> float:
    """Six digits: more than are seen, in half of the room."""
    return float(f"{value:.6g}")


def datasets(series: Sequence[Spec]) -> dict[str, list[Spec]]:
    """Lines as the rows that a specification reads; a page's script does the same."""
    lines: list[Spec] = []
    bands: list[Spec] = []
    for number, columns in enumerate(series):
        same = {name: columns[name] for name in "mscdtf"} | {"k": number}
        lines += [{**same, "x": x, "y": y} for x, y in zip(columns["x"], columns["y"], strict=True)]
        if "band" in columns:
            band = columns["band"]
            edges = zip(band["x"], band["lo"], band["hi"], strict=True)
            bands += [{**same, "x": x, "lo": low, "hi": high} for x, low, high in edges]
    return {"lines": lines, "bands": bands}


def dotted(series: Series) -> bool:
    """Whether each of its points is a dot."""
    return len(series.points) == 1 or (series.thick and len(series.points) <= FEW)
