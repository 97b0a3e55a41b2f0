"""Fits to few points with seeds behind each: power laws with bootstrap bands, slopes seed by seed."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, linear_regression

from widestream.report.stats.intervals import Interval, mean_interval

DRAWS = 2000
"""Bootstrap samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """loss = exp(intercept) x^-exponent."""

    intercept: float
    """log loss at x = 1."""
    exponent: float
    """How fast it falls."""

    def __call__(self, x: float) -> float:
        """Loss at x."""
        return math.exp(self.intercept - self.exponent * math.log(x))

    def where(self, loss: float) -> float:
        """The x of a loss."""
        return math.exp((self.intercept - math.log(loss)) / self.exponent)


def fit_power_law(points: Mapping[float, float]) -> PowerLaw:
    """Least squares of log loss on log x."""
    slope, level = line([(math.log(x), math.log(loss)) for x, loss in points.items()])
    return PowerLaw(intercept=level, exponent=-slope)


def bootstrap_fits(points: Mapping[float, Sequence[float]], draws: int = DRAWS) -> list[PowerLaw]:
    """Fits to resampled seeds: at every x as many as there are, drawn with replacement; the same draws every time."""
    chance = random.Random(0)
    return [
        fit_power_law({x: fmean(chance.choices(losses, k=len(losses))) for x, losses in points.items()})
        for _ in range(draws)
    ]


def percentile_interval(estimate: float, values: Sequence[float], n: int) -> Interval:
    """An estimate and the 2.5 and 97.5 percentiles of its bootstrap values."""
    ordered = sorted(values)
    low, high = (ordered[round(part * (len(ordered) - 1))] for part in (0.025, 0.975))
    return Interval(mean=estimate, low=low, high=high, n=n)


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    return linear_regression(*zip(*points, strict=True))


def curvature(points: Sequence[tuple[float, float]]) -> float:
    """Coefficient of x^2 of the least-squares parabola."""
    xs = [x for x, _ in points]
    slope, level = line([(x, x * x) for x in xs])
    rest = [x * x - slope * x - level for x in xs]  # x^2 less its line, so that it stands at right angles to both
    return sum(r * y for r, (_, y) in zip(rest, points, strict=True)) / sum(r * r for r in rest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slope:
    """How the loss moves with the logarithm of x."""

    per_doubling: Interval
    """Change of the loss when x doubles, over seeds."""
    bend: Interval | None
    """Coefficient of the squared logarithm (base 2), over seeds; None under three points."""
    falling: bool
    """Whether the mean loss falls from every point to the next."""


def slope(points: Sequence[tuple[float, Mapping[tuple[int, int], float]]]) -> Slope | None:
    """Fit loss on log2 x, seed by seed; None without two places and a seed that all points have.

    Args:
        points: x and the losses by seeds.
    """
    places = {x for x, _ in points}
    if len(places) < 2:
        return None
    points = sorted(points, key=lambda point: point[0])
    shared = set(points[0][1]).intersection(*(losses for _, losses in points[1:]))
    if not shared:
        return None
    curves = [[(math.log2(x), losses[seed]) for x, losses in points] for seed in sorted(shared)]
    means = [fmean(losses[seed] for seed in shared) for _, losses in points]
    return Slope(
        per_doubling=mean_interval([line(curve)[0] for curve in curves]),
        bend=mean_interval([curvature(curve) for curve in curves]) if len(places) > 2 else None,
        falling=all(after < before for before, after in pairwise(means)),
    )
