"""Axes: where a number lies, and which numbers are worth a tick."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """A stretch of numbers laid along an axis."""

    low: float
    """Number at the start."""
    high: float
    """Number at the end."""
    length: float
    """Length of the axis."""
    log: bool = False
    """Logarithmic."""
    flipped: bool = False
    """The start is at `length`, as for a y axis, which SVG counts from the top."""

    def __call__(self, value: float) -> float:
        """Place of a number on the axis."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        part = (value - low) / (high - low)
        return round(self.length * (1 - part if self.flipped else part), 1)


def with_room(values: Iterable[float], below: float, above: float) -> tuple[float, float]:
    """From the lowest to the highest of numbers, and parts of that distance (of 1 where they are equal) beyond."""
    values = list(values)
    low, high = min(values), max(values)
    distance = high - low or 1.0
    return low - below * distance, high + above * distance


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers (steps of 1, 2 or 5 times a power of ten) within [low, high]."""
    rough = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [i * step for i in range(first, last + 1)]
    raise AssertionError("some step is wide enough")


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` of 1, 2, 5 times powers of ten within [low, high]; only powers, or every few, if too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 6)):
        ticks = [d * 10.0**p for p in powers if p % every == 0 for d in digits]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            return ticks
    return []
