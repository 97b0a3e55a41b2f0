"""Fewer points for the same picture: what is drawn are points of the line, none of them made up."""

from collections.abc import Sequence

MOST = 500
"""Most points of a drawn line: more than a chart has pixels to show them."""
TOTAL = 8000
"""Most points of a chart of many lines, as far as each keeps a fair number."""
LEAST = 80
"""A line keeps so many however many lines there are."""


def room_for_each(lines: int) -> int:
    """How many points each of so many lines may have."""
    return min(MOST, max(LEAST, TOTAL // max(1, lines)))


def thinned(values: Sequence[float], most: int) -> list[int]:
    """Places of at most `most` values: the first, the last, and the lowest and the highest of every stretch."""
    count = len(values)
    if count <= most:
        return list(range(count))
    stretches = (most - 2) // 2
    kept = {0, count - 1}
    for number in range(stretches):
        stretch = range(1 + number * (count - 2) // stretches, 1 + (number + 1) * (count - 2) // stretches)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(kept)
