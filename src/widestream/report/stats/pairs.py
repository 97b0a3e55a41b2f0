"""Two models side by side: difference in loss at equal resources, along training, and resources to equal loss."""

from dataclasses import dataclass

from widestream.report.stats.groups import Group
from widestream.report.stats.intervals import Interval, difference
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
    """Training tokens at which they are compared: the last that both have seen."""
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

    @property
    def difference(self) -> Interval:
        """Difference in held-out loss at equal tokens."""
        return self.at_equal["tokens"]

    @property
    def claimed(self) -> bool:
        """Whether a difference may be claimed at all: neither model lost a seed by divergence."""
        return self.reference.claimable and self.other.claimable


def match(reference: Group, other: Group) -> Pair | None:
    """Compare two models; None when their evaluations share no stretch of training.

    Where all runs end after the same tokens and were read on as many held-out ones, their last evaluations are
    compared, as measured; else the smoothed curves at the last tokens that all runs have seen.
    """
    groups = (reference, other)
    last = {(end.tokens, end.target_tokens) for group in groups for end in group.ends}
    if len(last) == 1:
        tokens = last.pop()[0]
        values = [{run.seeds: end for run, end in zip(group.runs, group.finals, strict=True)} for group in groups]
    else:
        tokens = min(group.curve.tokens[-1] for group in groups)
        values = [_values_at(group, "tokens", tokens) for group in groups]
    if not all(values):
        return None
    curves = _paired_curves(reference, other)
    return Pair(
        reference=reference,
        other=other,
        tokens=tokens,
        by_seed={
            run.seed_name: values[1][run.seeds] - values[0][run.seeds]
            for run in reference.runs
            if run.seeds in values[0] and run.seeds in values[1]
        },
        at_equal={"tokens": difference(*values), **_at_equal_cost(reference, other)},
        gaps={resource: tuple(gaps(reference.curve, other.curve, resource)) for resource in RESOURCES},
        gaps_by_seed=tuple(tuple(gaps(*pair, "tokens")) for pair in curves),
        trend=trend(curves or [(reference.curve, other.curve)]),
        targets=(_target(reference, other), _target(other, reference)),
    )


def _values_at(group: Group, resource: Resource, amount: float) -> dict[tuple[int, int], float]:
    """Loss by seeds after an amount of a resource, from the smoothed curves."""
    losses = {run.seeds: value_at(curve, resource, amount) for run, curve in zip(group.runs, group.curves, strict=True)}
    return {seeds: value for seeds, value in losses.items() if value is not None}


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
