"""The mathematics of a matched comparison: smoothing, interpolation, resources to a loss, gaps, their trend.

Pure functions of numbers. A curve is one model's held-out loss (or bits per byte) beside the three resources spent to
get there. Nothing here extrapolates: outside what was measured the answer is None.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from widestream.report.stats.intervals import mean_interval

Resource = Literal["tokens", "flops", "wall_s"]
RESOURCES: tuple[Resource, ...] = ("tokens", "flops", "wall_s")
RESOURCE_WORDS: dict[Resource, str] = {"tokens": "tokens", "flops": "training FLOPs", "wall_s": "wall time"}

_HALF_WINDOW = 3
"""Evaluations on either side that the local fit looks at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Held-out loss over training. All four have one entry per evaluation, the resources strictly positive."""

    tokens: tuple[float, ...]
    """Training tokens."""
    flops: tuple[float, ...]
    """Training FLOPs, the logits matmul included."""
    wall_s: tuple[float, ...]
    """Seconds of training."""
    loss: tuple[float, ...]
    """Held-out loss."""

    def axis(self, resource: Resource) -> tuple[float, ...]:
        """The evaluations' places on one resource."""
        return getattr(self, resource)

    def points(self, resource: Resource, unit: float = 1.0) -> tuple[tuple[float, float], ...]:
        """(amount of a resource in units, loss) of every evaluation."""
        return tuple((at / unit, loss) for at, loss in zip(self.axis(resource), self.loss, strict=True))

    @property
    def best(self) -> float:
        """Lowest loss."""
        return min(self.loss)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """What a model spends until its smoothed held-out loss first reaches a target."""

    tokens: float
    """Training tokens."""
    flops: float
    """Training FLOPs, the logits matmul included."""
    wall_s: float
    """Seconds of training."""
    at_most: bool = False
    """The first evaluation is already below the target, so these are upper bounds."""


def smooth(curve: Curve) -> Curve:
    """Local parabolas through log loss over log tokens, three evaluations to either side, nearer ones weighing more.

    Held-out curves bend little in log-log, so a parabola through seven neighbours removes wiggles without moving the
    curve; a straight line would lift it where it bends, unequally for two models, and so bias their gap. The window is
    symmetric and shrinks towards the ends, so that the first and last evaluations stay as measured. An isotonic fit was
    not chosen because its flat steps make "first reached" ambiguous, a lower envelope because it follows noise down.
    """
    import numpy as np

    x, y = np.log(curve.tokens), np.log(curve.loss)
    fitted = np.array(curve.loss, dtype=float)
    for half in (2, _HALF_WINDOW):  # the wider ones go over the narrower ones, which stay at the ends
        if len(x) > 2 * half:
            fitted[half:-half] = np.exp(_local_parabolas(x, y, half))
    return replace(curve, loss=tuple(fitted.tolist()))


def _local_parabolas(x: Any, y: Any, half: int) -> Any:
    """Values of weighted least-squares parabolas through the neighbours of each place, at that place [places - 2 half].

    Args:
        x: places [places].
        y: values there [places].
        half: neighbours on either side; nearer ones weigh more.
    """
    import numpy as np

    windows = np.lib.stride_tricks.sliding_window_view
    near = windows(y, 2 * half + 1)
    places = windows(x, 2 * half + 1) - x[half : len(x) - half, None]
    weights = 1 - np.abs(np.arange(-half, half + 1)) / (half + 1)

    def inner(one: Any, other: Any) -> Any:
        return (weights * one * other).sum(axis=1)

    value, basis = np.zeros(len(near)), []
    for power in range(3):  # Gram-Schmidt on 1, x, x^2; `at` follows the polynomials' values where they are read, at 0
        polynomial, at = places**power, np.full(len(near), float(power == 0))
        for other, other_at, square in basis:
            share = inner(polynomial, other) / square
            polynomial = polynomial - share[:, None] * other
            at = at - share * other_at
        square = inner(polynomial, polynomial)
        basis.append((polynomial, at, square))
        value += at * inner(near, polynomial) / square
    return value


def mean_curve(curves: Sequence[Curve]) -> Curve | None:
    """Mean over runs at the evaluations (equal tokens) that all of them have; None where there is none."""
    import numpy as np

    shared = set(curves[0].tokens).intersection(*(curve.tokens for curve in curves[1:]))
    if not shared:
        return None
    kept = [np.isin(curve.tokens, [*shared]) for curve in curves]

    def mean(name: str) -> tuple[float, ...]:
        columns = [np.asarray(getattr(curve, name), float)[rows] for curve, rows in zip(curves, kept, strict=True)]
        return tuple(np.mean(columns, axis=0).tolist())

    return Curve(**{name: mean(name) for name in (*RESOURCES, "loss")})


def value_at(curve: Curve, resource: Resource, amount: float) -> float | None:
    """Loss after spending an amount of a resource, by interpolation in log-log; None outside the curve."""
    axis = curve.axis(resource)
    if not axis[0] <= amount <= axis[-1]:
        return None
    i = bisect_left(axis, amount)
    if i == 0:
        return curve.loss[0]
    part = (math.log(amount) - math.log(axis[i - 1])) / (math.log(axis[i]) - math.log(axis[i - 1]))
    return _between(curve.loss[i - 1], curve.loss[i], part)


def reach(curve: Curve, target: float) -> Reach | None:
    """Resources spent when the loss first is at or below a target (paper, Table 3); None when it never is.

    Interpolates in log-log between the two evaluations around the crossing.
    """
    first = next((i for i, loss in enumerate(curve.loss) if loss <= target), None)
    if first is None:
        return None
    if first == 0:
        start = {resource: curve.axis(resource)[0] for resource in RESOURCES}
        return Reach(**start, at_most=curve.loss[0] < target)
    above, below = math.log(curve.loss[first - 1]), math.log(curve.loss[first])
    part = (above - math.log(target)) / (above - below)
    spent = (_between(curve.axis(resource)[first - 1], curve.axis(resource)[first], part) for resource in RESOURCES)
    return Reach(**dict(zip(RESOURCES, spent, strict=True)))


def _between(start: float, end: float, part: float) -> float:
    """The point a part of the way from start to end, in log space; exact at both ends."""
    if part in (0.0, 1.0):
        return end if part else start
    return math.exp(math.log(start) + part * (math.log(end) - math.log(start)))


def gaps(reference: Curve, other: Curve, resource: Resource) -> list[tuple[float, float]]:
    """Loss of other minus loss of reference where both have spent the same, at every evaluation of either, in order.

    Only where both curves reach; empty where they do not overlap.
    """
    import numpy as np

    axes = [np.asarray(curve.axis(resource), float) for curve in (reference, other)]
    places = np.union1d(*axes)
    places = places[(places >= max(axis[0] for axis in axes)) & (places <= min(axis[-1] for axis in axes))]
    ours, theirs = (
        np.exp(np.interp(np.log(places), np.log(axis), np.log(curve.loss)))
        for axis, curve in zip(axes[::-1], (other, reference), strict=True)
    )
    return list(zip(places.tolist(), (ours - theirs).tolist(), strict=True))


def gap_at(reference: Curve, other: Curve, resource: Resource, amount: float) -> float | None:
    """Loss of other minus loss of reference after the same amount; None where one of them did not get there."""
    ours, theirs = value_at(other, resource, amount), value_at(reference, resource, amount)
    return None if ours is None or theirs is None else ours - theirs


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """How a gap moves over the last half of training."""

    half_tokens: float
    """Half of `end_tokens`."""
    half: float
    """Mean gap there."""
    end_tokens: float
    """Last tokens that both curves reach."""
    end: float
    """Mean gap there."""
    direction: Literal["growing", "shrinking", "unclear", "crossing"]
    """growing, shrinking: the gap's size changes by a tenth or more. crossing: the lead changes hands. unclear:
    neither, or the 95 % interval of the change over seeds holds zero, or there is none, as with one seed."""


def trend(pairs: Sequence[tuple[Curve, Curve]]) -> Trend | None:
    """Compare the gap at half of the shared tokens with the gap at their end, for (reference, other) curves by seed.

    None where the first evaluation lies beyond the half.
    """
    end = min(curve.tokens[-1] for pair in pairs for curve in pair)
    halves = [gap_at(*pair, "tokens", end / 2) for pair in pairs]
    ends = [gap_at(*pair, "tokens", end) for pair in pairs]
    known = [(half, last) for half, last in zip(halves, ends, strict=True) if half is not None and last is not None]
    if len(known) < len(pairs):
        return None
    half, last = fmean(half for half, _ in known), fmean(last for _, last in known)
    change = mean_interval([last - half for half, last in known], "paired")
    if change.low is None or change.holds_zero:
        direction = "unclear"
    elif half * last < 0:
        direction = "crossing"
    elif abs(abs(last) - abs(half)) < 0.1 * abs(half):
        direction = "unclear"
    else:
        direction = "growing" if abs(last) > abs(half) else "shrinking"
    return Trend(half_tokens=end / 2, half=half, end_tokens=end, end=last, direction=direction)
