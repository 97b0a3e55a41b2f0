"""The plots of measurements: lines over the key dim, and bars by candidate."""

from collections.abc import Mapping, Sequence

from widestream.report.figures.rows import BarChart, render_bars
from widestream.report.figures.svg import Chart, Series, render
from widestream.report.formats import three

WIDTH, HEIGHT = 520, 330
"""Of a panel; higher where there are many bars."""

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
            titles=tuple(f"{name}, D_k {x:g}: {three(y)}" for x, y in points),
        )
        for number, (name, points) in enumerate(drawn.items())
    )
    highest = max(y for points in drawn.values() for _, y in points)
    y_range = (0.0, 1.08 * highest or 1.0)
    return [Chart(title=title, x_label="key dim D_k", y_label=y_label, series=series, y_range=y_range, log_x=True)]


def draw(panels: Sequence[Panel]) -> tuple[list[str], int]:
    """All panels as SVG, and the height that they share."""
    height = max([HEIGHT, *(panel.height for panel in panels if isinstance(panel, BarChart))])
    return [
        render_bars(panel, WIDTH, height) if isinstance(panel, BarChart) else render(panel, WIDTH, height)
        for panel in panels
    ], height
