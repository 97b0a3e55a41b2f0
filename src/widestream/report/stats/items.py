"""Intervals and tests over the items of a task: of one model's figure, and of the difference of two on the same items.

What chance there is in which items a data set holds; how a model's seed came out is another (`intervals.py`). Of three
ways to a 95 % interval of a mean, Student's, with residuals of the ratio where items weigh differently, holds the truth
as often as the bootstrap or more often at every size that was simulated (tests/report/test_coverage_of_items.py), so it
stands for means; the bootstrap is shown beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from widestream.report.stats.intervals import LEVEL, Interval, Method, around

RESAMPLES = 2000
"""Of the bootstrap."""


def mean_over_items(values: Sequence[float], weights: Sequence[float] | None = None, paired: bool = False) -> Interval:
    """A weighted mean, sum of values over sum of weights, and its t-interval by linearised residuals.

    Args:
        values: of the items: a score, nats, or the difference of two models' (`paired`).
        weights: what each item's value is of (words, tokens); None: one each.
        paired: whether values are differences.
    """
    n = len(values)
    method: Method = "paired" if paired else "t"
    total = n if weights is None else math.fsum(weights)
    mean = math.fsum(values) / total
    if n < 2:
        return Interval(mean=mean, low=None, high=None, n=n, method=method)
    residuals = (value - mean * weight for value, weight in zip(values, weights or [1.0] * n, strict=True))
    error = math.sqrt(n / (n - 1) * math.fsum(one * one for one in residuals)) / total
    return around(mean, error, n - 1, n, method)


def proportion(right: Sequence[float]) -> Interval:
    """Share of right answers, with Wilson's interval (never empty, even where all or none are right)."""
    from scipy.stats import binomtest

    n, count = len(right), round(math.fsum(right))
    ends = binomtest(count, n).proportion_ci(LEVEL, method="wilson")
    return Interval(mean=count / n, low=float(ends.low), high=float(ends.high), n=n, method="wilson")


def accuracy_difference(reference: Sequence[float], other: Sequence[float]) -> Interval:
    """Difference of two models' shares of right answers on the same items, other minus reference.

    The interval is the paired one with one more item that each model alone has right (Bonett and Price 2012), so that
    it is never empty. Where items are right or wrong p is McNemar's, exact: whether those that one model alone has
    right fall evenly on both. Means over several seeds have Student's p.
    """
    from scipy.stats import binomtest

    gaps = [b - a for a, b in zip(reference, other, strict=True)]
    plain, wide = mean_over_items(gaps, paired=True), mean_over_items([*gaps, 1.0, -1.0], paired=True)
    assert wide.low is not None, "of two items or more"
    assert wide.high is not None, "of two items or more"
    ends = {"low": max(wide.low, -1.0), "high": min(wide.high, 1.0)}
    if {*gaps} <= {-1.0, 0.0, 1.0} and {*reference} <= {0.0, 1.0}:
        gained, alone = gaps.count(1.0), gaps.count(1.0) + gaps.count(-1.0)
        p = float(binomtest(gained, alone).pvalue) if alone else 1.0
        return replace(plain, **ends, method="mcnemar", p=p)
    return replace(plain, **ends)


def bootstrap(values: Sequence[float], weights: Sequence[float] | None = None) -> tuple[float, float] | None:
    """95 % percentile interval of a weighted mean over resampled items; None for fewer than two. Seeded."""
    import numpy as np

    n = len(values)
    if n < 2:
        return None
    dice, own = np.random.default_rng(0), np.asarray(values, dtype=float)
    own_weights = np.ones(n) if weights is None else np.asarray(weights, dtype=float)
    means = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = dice.integers(0, n, n)
        means[number] = own[drawn].sum() / own_weights[drawn].sum()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def averaged(rows: Sequence[Sequence[float]]) -> list[float]:
    """Item by item, the mean over several runs."""
    return [fmean(column) for column in zip(*rows, strict=True)]
