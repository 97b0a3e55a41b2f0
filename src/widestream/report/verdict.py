"""The verdict: sentences made from the numbers, whichever way they fall."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from widestream.report import formats
from widestream.report.comparable import FEW, Mismatch
from widestream.report.stats.groups import Apart, Group, Metric, diverged_seeds, seed_count
from widestream.report.stats.intervals import Interval
from widestream.report.stats.matched import Resource
from widestream.report.stats.pairs import Pair, Target

CHINCHILLA = 20
"""Tokens per non-embedding parameter of a compute-optimal run, as the RMT paper counts them."""

METRIC_NAMES: dict[Metric, str] = {"loss": "held-out loss", "bits_per_byte": "held-out bits per byte"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The result in words."""

    headline: str
    """Who is ahead at equal tokens, or that nobody is, or why nothing can be said."""
    details: tuple[str, ...]
    """One sentence each: other resources, resources to equal loss, movement of the gap; the last one always says how
    far into training this looks."""

    def __str__(self) -> str:
        """All sentences."""
        return " ".join((self.headline, *self.details))


def verdicts(
    groups: Sequence[Group],
    apart: Sequence[Apart],
    pairs: Sequence[Pair],
    unranked: Sequence[Pair],
    mismatches: Sequence[Mismatch],
    metric: Metric,
) -> list[Verdict]:
    """One verdict for each model against the reference; a single one where there is nothing to decide.

    Models that are compared elsewhere than the others (`unranked`) say so; those that have no figures follow, each
    with what became of it.
    """
    depth = (reading_depth(groups),)
    rest = [Verdict(headline=f"{one.label}: {one.reason}.", details=()) for one in apart]
    if len(groups) == 1:
        only = "the only model here" if not apart else "the only model here that has figures"
        headline = f"{groups[0].label} is {only}: there is nothing to compare."
        return [Verdict(headline=headline, details=depth), *rest]
    if mismatches:
        fields = formats.listing([mismatch.field for mismatch in mismatches])
        headline = f"Not comparable, so no verdict about loss is given: the models differ in {fields}."
        return [Verdict(headline=headline, details=depth), *rest]
    told: dict[str, Verdict] = {}
    if grounds := _grounds(pairs, groups[0]):
        told[""] = Verdict(headline=grounds, details=())
    told |= {pair.other.label: _verdict(pair, metric) for pair in pairs}
    for pair in unranked:
        alone = _verdict(pair, metric)
        told[pair.other.label] = replace(alone, headline=f"{_aside(pair)} {alone.headline}".strip()) if pairs else alone
    for other in groups[1:]:
        sentence = f"{other.label} and {groups[0].label} share no stretch of training."
        told.setdefault(other.label, Verdict(headline=sentence, details=depth))
    return [*told.values(), *rest]


def _grounds(pairs: Sequence[Pair], first: Group) -> str:
    """What becomes of differences from one reference to another, in one sentence; empty where there is one only."""
    references = {pair.reference.label for pair in pairs}
    if len(references) < 2:
        return ""
    on_ground = [pair for pair in pairs if pair.other.label not in references]
    between = [pair for pair in pairs if pair.other.label in references and pair.reference is first]
    sentence = f"Each against its own reference, {'; '.join(map(_in_short, on_ground))}"
    return f"{sentence}. Between the references, {'; '.join(map(_in_short, between))}." if between else f"{sentence}."


def _in_short(pair: Pair) -> str:
    ours, theirs = pair.other.label, pair.reference.label
    if pair.difference.low is not None and not pair.seen("tokens"):
        return f"{ours} and {theirs} show no difference ({formats.signed(pair.difference.mean)})"
    return f"{ours} is {_lower(pair.difference)} than {theirs}"


def _aside(pair: Pair) -> str:
    """Why a model is not compared where the others are, if it is for its length."""
    ends = f"{pair.other.label} stands apart, for it ends at {formats.count(pair.other.tokens)} tokens."
    return ends if pair.claimed else ""


def _verdict(pair: Pair, metric: Metric) -> Verdict:
    if not pair.claimed:
        return Verdict(headline=_survivors(pair, metric), details=(reading_depth((pair.reference, pair.other)),))
    details = [_equal_cost(pair), *(_target(target) for target in pair.targets)]
    if pair.trend:
        details.append(_trend(pair))
    details.append(reading_depth((pair.reference, pair.other), pair.tokens))
    return Verdict(headline=_difference(pair, metric), details=tuple(filter(None, details)))


def _survivors(pair: Pair, metric: Metric) -> str:
    """What diverged, and the figures of the other seeds, from which nothing is claimed."""
    groups = (pair.other, pair.reference)
    lost = [f"{group.label}: {diverged_seeds(group.members)}." for group in groups if group.diverged]
    figures = [f"{group.label} {formats.loss(group.final.mean)} ({group.seeds})" for group in groups]
    return (
        f"{' '.join(lost)} No difference at equal tokens between {pair.other.label} and {pair.reference.label} is "
        f"claimed from the other seeds; their {METRIC_NAMES[metric]} is {formats.listing(figures)}."
    )


def _difference(pair: Pair, metric: Metric) -> str:
    """At equal tokens: who is ahead, or that nobody is."""
    ours, theirs, name = pair.other.label, pair.reference.label, METRIC_NAMES[metric]
    gap = f"{ours}'s {name} is {_lower(pair.difference)} than {theirs}'s ({_evidence(pair)})"
    sentence = f"At equal tokens{_place(pair)} {gap}."
    unknown = pair.difference.low is None and pair.difference.mean != 0
    return sentence if unknown or pair.seen("tokens") else f"No difference seen. {sentence}"


def _place(pair: Pair) -> str:
    """Where two models are compared, if that is not the end of both."""
    groups = (pair.other, pair.reference)
    ends = [group.label for group in groups if group.tokens == pair.tokens]
    if len(ends) == 2:
        return ""
    return f" ({formats.count(pair.tokens)}{f', where {ends[0]} ends' if ends else ''}),"


def _evidence(pair: Pair) -> str:
    """What stands behind a difference: interval and seeds, and what each seed says where the interval is no help."""
    difference = pair.difference
    counts = {group.label: len(group.runs) for group in (pair.other, pair.reference)}
    if difference.low is None:
        each = [f"{seed_count(n, n)} of {label}" for label, n in counts.items()]
        told = "one seed each" if set(counts.values()) == {1} else formats.listing(each)
        return f"{told}, so no interval: a difference of this size may be chance"
    same = len(set(counts.values())) == 1
    unpaired = f"{difference.n} seeds each" if same else f"{formats.listing([*map(str, counts.values())])} seeds"
    kind = f"{difference.n} seed pairs" if difference.method == "paired" else f"{unpaired}, unpaired"
    shown = f"95\N{NO-BREAK SPACE}% interval {_ends(difference)}, {kind}"
    if pair.family > 1:
        shown += f"; p {formats.p_value(pair.corrected['tokens'])} by Holm over {pair.family} comparisons"
    values = list(pair.by_seed.values())
    if not pair.seen("tokens") and values and min(values) * max(values) > 0:
        shown += f"; yet every seed points the same way, by {formats.size(min(values, key=abs))} or more"
    return shown


def _lower(interval: Interval) -> str:
    """A difference in words: 0.056 lower."""
    return f"{formats.size(interval.mean)} {'higher' if interval.mean > 0 else 'lower'}"


def _ends(interval: Interval) -> str:
    """The interval, counted in the direction of its mean."""
    assert interval.low is not None
    assert interval.high is not None
    low, high = (interval.low, interval.high) if interval.mean > 0 else (-interval.high, -interval.low)
    return f"{formats.loss(low)} to {formats.loss(high)}"


def _equal_cost(pair: Pair) -> str:
    """The same at equal training FLOPs and at equal wall time, and who is read before its end there."""
    words: dict[Resource, str] = {"flops": "training FLOPs (logits included)", "wall_s": "wall time"}
    parts = []
    for resource, name in words.items():
        if resource in pair.at_equal:
            interval = pair.at_equal[resource]
            ends = "" if interval.low is None else f" ({_ends(interval)})"
            parts.append(f"at equal {name} it is {_lower(interval)}{ends}{_early(pair, resource)}")
    sentence = "; ".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""


def _early(pair: Pair, resource: Resource) -> str:
    """Which of the two has not come to its end yet where both have spent the same."""
    ends = {group.label: group.curve.axis(resource)[-1] for group in (pair.reference, pair.other)}
    label = max(ends, key=lambda label: ends[label])
    share = min(ends.values()) / ends[label]
    return f", with {label} read at {formats.percent(share)} of its run" if share < 0.995 else ""


def _target(target: Target) -> str:
    """What the other model spends to reach this one's best loss."""
    goal = f"{target.label}'s best ({formats.loss(target.loss)})"
    if target.others is None:
        return f"{target.other} does not reach {goal} in these runs."
    names: dict[Resource, str] = {"tokens": "tokens", "flops": "FLOPs", "wall_s": "time"}
    spent = [f"{formats.percent(target.ratio(resource) or 0)} of its {name}" for resource, name in names.items()]
    bound = "at most " if target.others.at_most else ""
    return f"{target.other} reaches {goal} with {bound}{formats.listing(spent)}."


def _trend(pair: Pair) -> str:
    """How the gap moves over the last half of training."""
    trend = pair.trend
    assert trend is not None, "asked for pairs with a trend only"
    half, end, at = trend.half, trend.end, formats.count(trend.half_tokens)
    then = "the end" if trend.end_tokens == pair.tokens else f"{formats.count(trend.end_tokens)} tokens"
    if trend.direction == "unclear":
        return (
            f"Over the last half of training the difference shows no clear movement: {formats.signed(half)} at {at} "
            f"tokens, {formats.signed(end)} at {then}."
        )
    leader = (pair.other if end < 0 else pair.reference).label
    if trend.direction == "crossing" and not pair.seen("tokens"):
        return (
            f"Over the last half of training the difference moves from {formats.signed(half)} at {at} tokens to "
            f"{formats.signed(end)} at {then}."
        )
    if trend.direction == "crossing":
        return (
            f"Over the last half of training the lead changes hands: {leader} was {formats.size(half)} behind at {at} "
            f"tokens and is {formats.size(end)} ahead at {then}."
        )
    return (
        f"Over the last half of training {leader}'s lead is {trend.direction}: {formats.size(half)} at {at} "
        f"tokens, {formats.size(end)} at {then}."
    )


def reading_depth(groups: Iterable[Group], tokens: float | None = None) -> str:
    """How far into training this looks."""
    groups = list(groups)
    seen = tokens if tokens is not None else min(group.curve.tokens[-1] for group in groups)
    corpus = groups[0].runs[0].data["train_tokens"]
    return (
        f"This looks {formats.count(seen)} tokens into training: {formats.three(seen / corpus)} epochs of the corpus; "
        f"{_per_parameter(groups, seen)}, where a Chinchilla run has {CHINCHILLA}."
    )


def _per_parameter(groups: Sequence[Group], tokens: float) -> str:
    """Tokens for each parameter, model by model; of many the least and the most."""
    ratios = [tokens / group.non_embedding for group in groups]
    unit = "tokens per non-embedding parameter"
    if len(groups) > FEW:
        low, high = formats.three(min(ratios)), formats.three(max(ratios))
        return f"{low} {unit} for each model" if low == high else f"{low} to {high} {unit}"
    first, *others = [(formats.three(ratio), group.label) for ratio, group in zip(ratios, groups, strict=True)]
    return formats.listing([f"{first[0]} {unit} for {first[1]}", *(f"{ratio} for {label}" for ratio, label in others)])
