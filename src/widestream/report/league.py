"""Many models against one reference: who is ahead at equal tokens, FLOPs and time, in a table and a few sentences."""

from collections.abc import Sequence
from statistics import fmean

from widestream.report import formats
from widestream.report.comparison import Comparison, train_figures
from widestream.report.stats.groups import Group
from widestream.report.stats.matched import RESOURCES, Resource
from widestream.report.stats.pairs import Pair
from widestream.report.table import NONE, Table
from widestream.report.verdict import METRIC_NAMES, Verdict, reading_depth

MANY = 6
"""More models than these make a league: a chart has no more colours."""

EQUAL: dict[Resource, str] = {
    "tokens": "At equal tokens",
    "flops": "At equal training FLOPs (logits included)",
    "wall_s": "At equal wall time",
}


def is_league(comparison: Comparison) -> bool:
    """Whether there are too many models to draw them into one chart, and all may be compared."""
    return len(comparison.groups) > MANY and comparison.comparable and bool(comparison.pairs)


def ranked(comparison: Comparison) -> list[Pair]:
    """All models against the reference, the lowest loss at equal tokens first."""
    return sorted(comparison.pairs, key=lambda pair: pair.difference.mean)


def league_verdict(comparison: Comparison) -> Verdict:
    """How many models are ahead of the reference and how many behind, and who leads, by resource."""
    reference, name = comparison.groups[0], METRIC_NAMES[comparison.metric]
    standings = [_standing(comparison.pairs, resource, reference.label, name) for resource in RESOURCES]
    headline, *details = filter(None, standings)
    if all(pair.difference.low is None for pair in comparison.pairs):
        details.append("One seed each, so no interval: a difference of some hundredths may be chance.")
    else:
        details.append(
            "Counted are models whose 95 % interval over seeds excludes zero; nothing corrects for their number."
        )
    return Verdict(headline=headline, details=(*details, reading_depth((reference,))))


def _standing(pairs: Sequence[Pair], resource: Resource, reference: str, metric: str) -> str:
    gaps = {pair.other.label: pair.at_equal[resource] for pair in pairs if resource in pair.at_equal}
    if not gaps:
        return ""
    sure = [interval.mean for interval in gaps.values() if not interval.holds_zero]
    below, above = sum(mean < 0 for mean in sure), sum(mean > 0 for mean in sure)
    rest = len(gaps) - below - above
    unclear = f", and for {rest} no difference is seen" if rest else ""
    first = sorted(gaps, key=lambda label: gaps[label].mean)[:3]
    leaders = formats.listing([f"{label} ({formats.signed(gaps[label].mean)})" for label in first])
    return (
        f"{EQUAL[resource]} {below} of {len(gaps)} models have a lower {metric} than {reference}, {above} a higher one"
        f"{unclear}. In front: {leaders}."
    )


def league_table(comparison: Comparison) -> Table:
    """One row a model, the reference among them where it stands at equal tokens."""
    reference = comparison.groups[0]
    rows = [(pair.difference.mean, _row(pair.other, pair, reference)) for pair in ranked(comparison)]
    rows.append((0.0, _row(reference, None, reference)))
    return Table(
        title="All models",
        caption=f"Differences are in held-out loss from {reference.label}, below zero is better; with several seeds "
        "their 95 % interval follows. Tokens to its best: when a model reaches the best loss of "
        f"{reference.label}, as a share of what that needed. State: numbers per token that the stream carries. "
        "Step time and peak memory are those of the process, relative to the reference's.",
        columns=(
            "model", "what it is", "held-out loss", "at equal tokens", "at equal FLOPs", "at equal time",
            "tokens to its best", "parameters", "non-embedding", "state", "FLOPs per token", "step time", "peak memory",
            "peak rate",
        ),
        rows=tuple(row for _, row in sorted(rows, key=lambda item: item[0])),
        words=2,
    )  # fmt: skip


def _row(group: Group, pair: Pair | None, reference: Group) -> tuple[str, ...]:
    run = group.runs[0]
    gaps = [_gap(pair, resource) for resource in RESOURCES]
    reached = pair.targets[0].ratio("tokens") if pair else 1.0
    return (
        group.label,
        str(run.config.get("description") or NONE),
        formats.spread([end.loss for end in group.ends]),
        *gaps,
        "not reached" if reached is None else formats.percent(reached),
        formats.count(run.parameters["total"]),
        formats.count(group.non_embedding),
        f"{run.info['summary']['stream_size']:,}",
        formats.flops(run.flops_per_token["train"]),
        _relative(group, reference, "tokens_per_s", inverse=True),
        _relative(group, reference, "memory_bytes"),
        f"{run.config.get('optimizer', {}).get('lr', NONE)}",
    )


def _gap(pair: Pair | None, resource: Resource) -> str:
    if pair is None or resource not in pair.at_equal:
        return NONE
    interval = pair.at_equal[resource]
    ends = "" if interval.low is None else f" ({formats.interval(interval.low, interval.high)})"
    return f"{formats.signed(interval.mean)}{ends}"


def _relative(group: Group, reference: Group, figure: str, inverse: bool = False) -> str:
    """A figure of the training rows as a share of the reference's."""
    ours, theirs = _figure(group, figure), _figure(reference, figure)
    if ours is None or theirs is None:
        return NONE
    return formats.percent(theirs / ours if inverse else ours / theirs)


def _figure(group: Group, name: str) -> float | None:
    values = [value for run in group.runs if (value := train_figures(run)[name]) is not None]
    return fmean(values) if values else None
