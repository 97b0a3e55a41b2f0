"""Means and differences over seeds, with 95 % intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean and its 95 % confidence interval; without one where fewer than two values stand behind it."""

    mean: float
    """The estimate."""
    low: float | None
    """Lower end."""
    high: float | None
    """Upper end."""
    n: int
    """Values (or pairs of values) behind it; under `welch`, those of the smaller side."""
    method: Literal["t", "paired", "welch"] = "t"
    """t: of one sample. paired: of differences at the same seeds. welch: of two samples with no seed in common."""

    @property
    def holds_zero(self) -> bool:
        """Whether zero lies inside (never known without an interval)."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high


def mean_interval(values: Sequence[float], method: Literal["t", "paired"] = "t") -> Interval:
    """Mean of values and its 95 % t-interval (none for a single value)."""
    mean, n = fmean(values), len(values)
    if n < 2:
        return Interval(mean=mean, low=None, high=None, n=n, method=method)
    half = t_quantile(n - 1) * stdev(values) / math.sqrt(n)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n, method=method)


def difference(reference: Mapping[Any, float], other: Mapping[Any, float]) -> Interval:
    """Mean of other minus mean of reference with a 95 % interval, from values by seed.

    Where both have values of the same seeds (hence the same batches), their differences are taken pair by pair and
    the rest is left out. With no seed in common: Welch's interval.
    """
    shared = [seed for seed in reference if seed in other]
    if shared:
        return mean_interval([other[seed] - reference[seed] for seed in shared], "paired")
    mean, n = fmean(other.values()) - fmean(reference.values()), min(len(reference), len(other))
    if n < 2:
        return Interval(mean=mean, low=None, high=None, n=n, method="welch")
    parts = [(stdev(side.values()) ** 2 / len(side), len(side) - 1) for side in (reference, other)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Interval(mean=mean, low=mean, high=mean, n=n, method="welch")
    half = t_quantile(variance**2 / sum(part**2 / df for part, df in parts)) * math.sqrt(variance)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n, method="welch")


def t_quantile(df: float, level: float = 0.95) -> float:
    """Two-sided quantile of Student's t: the q with P(|t| < q) = level.

    A fractional df (Welch) is rounded down, which only widens the interval.
    """
    whole = max(1, math.floor(df))
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, whole) < level else (low, middle)
    return high


def _t_inside(q: float, df: int) -> float:
    """P(|t| < q), Abramowitz and Stegun 26.7.3 and 26.7.4."""
    theta = math.atan(q / math.sqrt(df))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = df % 2
    term = cosine if odd else 1.0
    total = term if df > 1 else 0.0
    for k in range(2 if odd else 1, df - 1, 2):
        term *= cosine**2 * k / (k + 1)
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
