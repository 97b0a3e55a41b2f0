"""Bar charts as small self-contained SVG, in the colours and letters of the line charts."""

from dataclasses import dataclass

from widestream.report.figures.scales import Scale, linear_ticks
from widestream.report.figures.svg import figure, svg_text
from widestream.report.formats import three, ticks

ROW = 21
"""Height of a bar with the space around it."""

_TOP, _BOTTOM = 33, 44


@dataclass(frozen=True, kw_only=True, slots=True)
class BarChart:
    """Horizontal bars from zero."""

    title: str
    """What it shows, for those who hear it; stands above it too."""
    x_label: str
    """With the unit."""
    values: dict[str, float]
    """Length of each bar, by its name, from the top down."""
    line_at: float | None = None
    """Where a line is drawn for comparison; bars beyond it have a colour of their own."""

    @property
    def height(self) -> int:
        """Units it needs."""
        return _TOP + ROW * len(self.values) + _BOTTOM


def render_bars(chart: BarChart, width: int, height: int) -> str:
    """The chart as an <svg> element that takes its colours from the page."""
    left = 14 + max(round(7.4 * len(name)) for name in chart.values)
    inner = width - left - 52
    highest = max(*chart.values.values(), chart.line_at or 0.0, 0.0)
    x = Scale(0.0, highest or 1.0, inner)
    floor = ROW * len(chart.values)
    parts = [
        f'<text x="0" y="14">{svg_text(chart.title)}</text>',
        f'<text x="{left + inner}" y="{_TOP + floor + 38}" text-anchor="end">{svg_text(chart.x_label)}</text>',
        f'<g transform="translate({left} {_TOP})">',
    ]
    marks = linear_ticks(0.0, x.high, 5)
    for mark, name in zip(marks, ticks(marks), strict=True):
        parts.append(f'<line class="grid" x1="{x(mark)}" x2="{x(mark)}" y1="0" y2="{floor}"/>')
        parts.append(f'<text x="{x(mark)}" y="{floor + 18}" text-anchor="middle">{name}</text>')
    for row, (name, value) in enumerate(chart.values.items()):
        colour = int(chart.line_at is not None and value > chart.line_at)
        at = ROW * row
        parts.append(
            f'<text x="-8" y="{at + 15}" text-anchor="end">{svg_text(name)}</text>'
            f'<rect style="fill:var(--s{colour})" x="0" y="{at + 4}" width="{x(value)}" height="{ROW - 7}"/>'
            f'<text class="note" x="{x(value) + 6}" y="{at + 15}">{three(value)}</text>'
        )
    if chart.line_at is not None:
        at = x(chart.line_at)
        parts.append(f'<line class="zero" x1="{at}" x2="{at}" y1="0" y2="{floor}"/>')
    return figure(chart.title, width, height, [*parts, "</g>"])
