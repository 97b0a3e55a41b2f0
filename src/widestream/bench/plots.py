"""The plots of measurements: lines over the key dim, and bars by candidate."""

from collections.abc import Mapping, Sequence

from widestream.report.figures.chart import Chart, Series
from widestream.report.figures.rows import BarChart
from widestream.report.formats import three

Points = Sequence[tuple[float, float]]
"""(x, y) in order of x."""
Panel = Chart | BarChart
"""A chart of a plot."""


def lines(
    title: str, y_label: str, curves: Mapping[str, Points], level: tuple[str, float] | None = None
) -> list[Panel]:
    """Curves over the key dim D_k from zero up, on a logarithmic axis.

    Args:
        title: what it shows.
        y_label: with the unit.
        curves: by name; those of one point are left out.
        level: name and value of what has no key dim, drawn as a level line.

    Returns:
        The chart; nothing where there are not two points to draw a line through.
    """
    drawn: dict[str, Points] = {name: points for name, points in curves.items() if len(points) > 1}
    if not drawn:
        return []
    xs = [x for points in drawn.values() for x, _ in points]
    if level is not None:
        drawn = {level[0]: [(min(xs), level[1]), (max(xs), level[1])], **drawn}
    series = tuple(
        Series(
            points=tuple(points),
            colour=number,
            label=name,
            value=three(points[-1][1]),
        )
        for number, (name, points) in enumerate(drawn.items())
    )
    highest = max(y for points in drawn.values() for _, y in points)
    y_range = (0.0, 1.08 * highest or 1.0)
    return [Chart(title=title, x_label="key dim D_k", y_label=y_label, series=series, y_range=y_range, log_x=True)]
