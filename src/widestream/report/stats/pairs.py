"""Two models side by side: difference in loss at equal resources, along training, and resources to equal loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from widestream.report.stats.groups import Group
from widestream.report.stats.intervals import SIGNIFICANT, Interval, difference, holm_by
from widestream.report.stats.matched import RESOURCES, Curve, Reach, Resource, Trend, gaps, reach, trend, value_at


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Resources to reach one model's best loss, for that model and the other (paper, Tables 3 and 4)."""

    label: str
    """Whose best loss it is."""
    other: str
    """Who tries to reach it too."""
    loss: float
    """Lowest point of the smoothed mean curve."""
    own: Reach
    """What the model itself spent."""
    others: Reach | None
    """What the other spends; None when it does not get there."""
    others_by_run: tuple[Reach | None, ...]
    """The same for each run of the other."""

    def ratio(self, resource: Resource) -> float | None:
        """The other's spending as a fraction of the model's own; None when it does not get there."""
        return None if self.others is None else getattr(self.others, resource) / getattr(self.own, resource)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One model against the reference. Every difference is other minus reference: negative means other is better."""

    reference: Group
    """The model compared with: the plain transformer, or the first one given."""
    other: Group
    """The model compared."""
    tokens: float
    """Training tokens at which they are compared: the last that both have seen, or, among many, that most have."""
    by_seed: dict[str, float]
    """The difference for each seed that both have."""
    at_equal: dict[Resource, Interval]
    """Difference in held-out loss by resource, at the largest amount of it that all runs have spent. Where seeds
    diverged it is one of survivors: see `claimed`."""
    gaps: dict[Resource, tuple[tuple[float, float], ...]]
    """(amount, difference) along training, of the mean curves, by resource."""
    gaps_by_seed: tuple[tuple[tuple[float, float], ...], ...]
    """(tokens, difference) along training for each seed that both have."""
    trend: Trend | None
    """How the gap moves over the last half of training."""
    targets: tuple[Target, Target]
    """To reach the reference's best loss; to reach the other's."""

    family: int = 1
    """Comparisons that were made together and are corrected for their number."""
    corrected: dict[Resource, float | None]
    """p-value by resource, corrected by Holm within the family; None without an interval or a claim."""

    @property
    def difference(self) -> Interval:
        """Difference in held-out loss at equal tokens."""
        return self.at_equal["tokens"]

    @property
    def claimed(self) -> bool:
        """Whether a difference may be claimed at all: neither model lost a seed by divergence."""
        return self.reference.claimable and self.other.claimable

    def seen(self, resource: Resource) -> bool:
        """Whether the difference is one at the 5 % level, the family's size counted in."""
        p = self.corrected.get(resource)
        return p is not None and p < SIGNIFICANT


def match(reference: Group, other: Group, tokens: float | None = None) -> Pair | None:
    """Compare two models; None when their evaluations share no stretch of training.

    Where all runs end after the same tokens and were read on as many held-out ones, their last evaluations are
    compared, as measured; else the smoothed curves. Differences are taken seed by seed where the models share seeds and
    batches (`Run.batches`).

    Args:
        reference: what is compared with.
        other: what is compared.
        tokens: where; default: the last that all runs have seen.
    """
    groups = (reference, other)
    ends = {(end.tokens, end.target_tokens) for group in groups for end in group.ends}
    if len(ends) == 1 and tokens in (None, reference.tokens):
        tokens = reference.tokens
        values = [{run.batches: end for run, end in zip(group.runs, group.finals, strict=True)} for group in groups]
    else:
        tokens = min(group.curve.tokens[-1] for group in groups) if tokens is None else tokens
        values = [_values_at(group, "tokens", tokens) for group in groups]
    if not all(values):
        return None
    curves = _paired_curves(reference, other)
    pair = Pair(
        reference=reference,
        other=other,
        tokens=tokens,
        by_seed={
            run.seed_name: values[1][run.batches] - values[0][run.batches]
            for run in reference.runs
            if run.batches in values[0] and run.batches in values[1]
        },
        at_equal={"tokens": difference(*values), **_at_equal_cost(reference, other)},
        gaps={resource: tuple(gaps(reference.curve, other.curve, resource)) for resource in RESOURCES},
        gaps_by_seed=tuple(tuple(gaps(*pair, "tokens")) for pair in curves),
        trend=trend(curves or [(reference.curve, other.curve)]),
        targets=(_target(reference, other), _target(other, reference)),
        corrected={},
    )
    return as_family([pair])[0]


def as_family(pairs: Sequence[Pair]) -> list[Pair]:
    """The same comparisons with the p-values of each resource corrected for their number (Holm)."""
    corrected = holm_by([pair.at_equal if pair.claimed else {} for pair in pairs])
    tests = sum(p.get("tokens") is not None for p in corrected)
    return [replace(pair, family=tests, corrected=p) for pair, p in zip(pairs, corrected, strict=True)]


def common_tokens(groups: Sequence[Group]) -> float:
    """The one number of tokens at which models are put into an order: that which most of them end at, if they do.

    Without a majority, the least at which one ends that is not shorter than half of the median. Nobody is read beyond
    the reference's end. A model that did not get there stands apart.

    Args:
        groups: the models, the reference first.
    """
    ends = [min(group.tokens, groups[0].tokens) for group in groups]
    if len(ends) < 3:
        return min(ends)
    most = max(ends, key=lambda end: (ends.count(end), end))
    if ends.count(most) > len(ends) / 2:
        return most
    return min(end for end in ends if end >= median(ends) / 2)


def _values_at(group: Group, resource: Resource, amount: float) -> dict[tuple[Any, ...], float]:
    """Loss by seeds and batches after an amount of a resource, from the smoothed curves."""
    losses = {
        run.batches: value_at(curve, resource, amount) for run, curve in zip(group.runs, group.curves, strict=True)
    }
    return {key: value for key, value in losses.items() if value is not None}


def _at_equal_cost(reference: Group, other: Group) -> dict[Resource, Interval]:
    """Difference by seed at equal FLOPs and equal wall time, each at the largest amount that every run has spent."""
    intervals: dict[Resource, Interval] = {}
    for resource in ("flops", "wall_s"):
        amount = min(curve.axis(resource)[-1] for group in (reference, other) for curve in group.curves)
        values = [_values_at(group, resource, amount) for group in (reference, other)]
        if all(values):
            intervals[resource] = difference(*values)
    return intervals


def _paired_curves(reference: Group, other: Group) -> list[tuple[Curve, Curve]]:
    ours, theirs = other.by_seed(), reference.by_seed()
    return [(reference.curves[theirs[seed]], other.curves[ours[seed]]) for seed in theirs if seed in ours]


def _target(owner: Group, other: Group) -> Target:
    loss = owner.curve.best
    spent = reach(owner.curve, loss)
    assert spent is not None, "a curve reaches its own lowest point"
    return Target(
        label=owner.label,
        other=other.label,
        loss=loss,
        own=spent,
        others=reach(other.curve, loss),
        others_by_run=tuple(reach(curve, loss) for curve in other.curves),
    )
