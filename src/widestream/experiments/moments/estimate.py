"""Estimates over draws and seeds, as the records of `widestream study moments` hold them."""

import math
from collections.abc import Sequence
from statistics import stdev
from typing import Any

from widestream.report.stats.intervals import mean_interval


def against_closed_form(values: Sequence[float], closed: float) -> dict[str, Any]:
    """Mean, 95 % t-interval and standard deviation of two or more values beside the mean that they should have.

    `z` is the mean's distance from it in standard errors, `inside` whether the interval holds it.
    """
    interval, sd = mean_interval(values), stdev(values)
    assert interval.low is not None
    assert interval.high is not None
    return {
        "closed": closed,
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "sd": sd,
        "n": interval.n,
        "z": (interval.mean - closed) / (sd / math.sqrt(interval.n)),
        "inside": interval.low <= closed <= interval.high,
    }


def geometric(values: Sequence[float]) -> list[float | None]:
    """[mean, low, high] of moments over seeds: geometric mean, and the 95 % t-interval of the logarithms.

    Where one is zero there is no logarithm: then the arithmetic mean, without interval. Three None where one is not
    finite. Four significant digits.
    """
    if not all(math.isfinite(value) for value in values):
        return [None, None, None]
    if min(values) <= 0:
        return [_four(math.fsum(values) / len(values)), None, None]
    interval = mean_interval([math.log(value) for value in values])
    return [None if end is None else _four(math.exp(end)) for end in (interval.mean, interval.low, interval.high)]


def _four(value: float) -> float:
    return float(f"{value:.4g}")
