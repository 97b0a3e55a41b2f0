"""Means and differences over seeds, with 95 % intervals (scipy.stats), and Holm's correction for many of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal, TypeVar

LEVEL = 0.95
"""Confidence of every interval."""
SIGNIFICANT = 0.05
"""p-values below it count as a difference seen."""
Resource = TypeVar("Resource", bound=str)
Method = Literal["t", "paired", "welch", "wilson", "mcnemar"]
"""t: of one sample. paired: of differences at the same seeds or items. welch: of two samples that are not paired. Of
items that are right or wrong (`items.py`): wilson, a share of them; mcnemar, the difference of two shares."""


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
    method: "Method" = "t"
    """Which interval it is."""
    p: float | None = None
    """Two-sided p-value of the mean being zero; below 0.05 exactly where the interval leaves zero out, but for
    `mcnemar`, where both are nearly so."""

    @property
    def holds_zero(self) -> bool:
        """Whether zero lies inside (never known without an interval)."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high


def mean_interval(values: Sequence[float], method: Literal["t", "paired"] = "t") -> Interval:
    """Mean of values and its 95 % t-interval (none for a single value)."""
    mean, n = fmean(values), len(values)
    if n < 2:
        return Interval(mean=mean, low=None, high=None, n=n, method=method)
    return around(mean, stdev(values) / math.sqrt(n), n - 1, n, method)


def difference(reference: Mapping[Any, float], other: Mapping[Any, float]) -> Interval:
    """Mean of other minus mean of reference with a 95 % interval, from values by seed.

    Where two or more seeds (hence the same batches) are shared, their differences are taken pair by pair and the rest
    is left out. Else Welch's interval over all values, if both sides have two.
    """
    shared = [seed for seed in reference if seed in other]
    few = min(len(reference), len(other))
    if len(shared) > 1 or (shared and few < 2):
        return mean_interval([other[seed] - reference[seed] for seed in shared], "paired")
    mean = fmean(other.values()) - fmean(reference.values())
    if few < 2:
        return Interval(mean=mean, low=None, high=None, n=few, method="welch")
    parts = [(stdev(side.values()) ** 2 / len(side), len(side) - 1) for side in (reference, other)]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / df for part, df in parts) if variance else 1.0  # Welch and Satterthwaite
    return around(mean, math.sqrt(variance), freedom, few, "welch")


def holm(intervals: Sequence[Interval]) -> list[float | None]:
    """p-values of a family of comparisons, corrected for their number (Holm 1979); None where there is no p-value.

    Below 0.05 for at least one true null hypothesis of the family in at most one family of twenty.
    """
    known = sorted((interval.p, i) for i, interval in enumerate(intervals) if interval.p is not None)
    corrected: list[float | None] = [None] * len(intervals)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def holm_by(comparisons: Sequence[Mapping[Resource, Interval]]) -> list[dict[Resource, float | None]]:
    """Holm's correction of each kind of comparison (at equal tokens, equal time, ...) among those that have it."""
    corrected: list[dict[Resource, float | None]] = [{} for _ in comparisons]
    for resource in dict.fromkeys(resource for one in comparisons for resource in one):
        places = [i for i, one in enumerate(comparisons) if resource in one]
        for i, p in zip(places, holm([comparisons[i][resource] for i in places]), strict=True):
            corrected[i][resource] = p
    return corrected


def around(mean: float, error: float, freedom: float, n: int, method: Method) -> Interval:
    """Student's interval and p-value from a mean, its standard error and the degrees of freedom."""
    from scipy.stats import t

    if error == 0:  # all values alike, as in a measurement that chance has no part in
        return Interval(mean=mean, low=mean, high=mean, n=n, method=method, p=float(mean == 0))
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    p = 2 * float(t.sf(abs(mean) / error, freedom))
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n, method=method, p=p)
