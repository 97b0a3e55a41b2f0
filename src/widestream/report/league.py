"""Many models against one reference: who is ahead at equal tokens, FLOPs and time, in a table and a few sentences."""

from collections.abc import Sequence
from statistics import fmean

from widestream.report import formats
from widestream.report.comparison import Comparison
from widestream.report.stats.groups import Apart, Group, diverged_seeds
from widestream.report.stats.matched import RESOURCES, Resource
from widestream.report.stats.pairs import Pair
from widestream.report.table import NONE, Table
from widestream.report.verdict import METRIC_NAMES, Verdict, reading_depth
from widestream.runs.read import Run
from widestream.runs.row import train_figures

MANY = 6
"""More models than these make a league: a chart has no more colours."""

EQUAL: dict[Resource, str] = {
    "tokens": "At equal tokens",
    "flops": "At equal training FLOPs (logits included)",
    "wall_s": "At equal wall time",
}


def is_league(comparison: Comparison) -> bool:
    """Whether there are too many models to draw them into one chart, and all may be compared."""
    return len(comparison.groups) > MANY and comparison.comparable


def ranked(comparison: Comparison) -> list[Pair]:
    """All models that may be ranked against the reference, the lowest loss at equal tokens first."""
    return sorted(comparison.pairs, key=lambda pair: pair.difference.mean)


def league_verdict(comparison: Comparison) -> Verdict:
    """How many models are ahead of the reference and how many behind, who leads, and who is not counted."""
    reference = comparison.groups[0]
    standings = [_standing(comparison, resource) for resource in RESOURCES]
    headline, *details = filter(None, [*standings, _not_counted(comparison)])
    if any(pair.difference.low is None for pair in comparison.pairs):
        details.append("Without an interval a difference of some hundredths may be chance.")
    details += [f"{one.label}: {one.reason}." for one in comparison.apart]
    lost = (group for group in comparison.groups if group.diverged)
    details += [f"{group.label}: {diverged_seeds(group.members)}." for group in lost]
    return Verdict(headline=headline, details=(*details, reading_depth((reference,), comparison.tokens)))


def _standing(comparison: Comparison, resource: Resource) -> str:
    """Who is ahead and who behind by intervals, before and after the correction for their number, and who leads."""
    pairs = [pair for pair in comparison.pairs if resource in pair.at_equal]
    reference, metric = comparison.groups[0].label, METRIC_NAMES[comparison.metric]
    where = f" ({formats.count(comparison.tokens)})" if resource == "tokens" else ""
    if not pairs:
        lost = diverged_seeds(comparison.groups[0].members)
        told = f"{reference}: {lost}. No difference is claimed." if lost else f"No model is ranked beside {reference}."
        return told if resource == "tokens" else ""
    known = [pair for pair in pairs if pair.at_equal[resource].low is not None]
    others = len(comparison.groups) - 1 + len(comparison.apart)
    sure = [pair for pair in known if not pair.at_equal[resource].holds_zero]
    below, above = _ways(sure, resource)
    rest = len(known) - below - above
    unclear = f", and for {rest} no difference is seen" if rest else ""
    whose = f"{below} of {others} models have"
    if len(known) < others:
        whose = f"{len(known)} of {others} models have an interval: {below} of them {'has' if below == 1 else 'have'}"
    told = f"{EQUAL[resource]}{where} {whose} a lower {metric} than {reference}, {above} a higher one{unclear}"
    if not known:
        told = f"{EQUAL[resource]}{where} none of {others} models has an interval beside {reference}"
    lower, higher = _ways([pair for pair in known if pair.seen(resource)], resource)
    if (lower, higher) != (below, above):
        told += f". Corrected for their number (Holm) {lower} {'is' if lower == 1 else 'are'} lower and {higher} higher"
    elif len(known) > 1:
        told += ", also when corrected for their number (Holm)"
    return f"{told}. {_front(pairs, resource, reference)}."


def _ways(pairs: Sequence[Pair], resource: Resource) -> tuple[int, int]:
    """How many differences lie below zero, and how many above."""
    means = [pair.at_equal[resource].mean for pair in pairs]
    return sum(mean < 0 for mean in means), sum(mean > 0 for mean in means)


def _front(pairs: Sequence[Pair], resource: Resource, reference: str) -> str:
    """Who stands before the reference; where nobody does, who comes next behind it."""
    before = [pair for pair in pairs if pair.at_equal[resource].mean < 0]
    if before:
        return f"In front: {_leaders(before, resource)}"
    return f"None is in front of {reference}; next behind it: {_leaders(pairs, resource)}"


def _leaders(pairs: Sequence[Pair], resource: Resource) -> str:
    """The three lowest, each with its difference, and whether an interval stands behind that."""
    first = sorted(pairs, key=lambda pair: pair.at_equal[resource].mean)[:3]
    gaps = {pair.other.label: pair.at_equal[resource] for pair in first}
    return formats.listing(
        [
            f"{label} ({formats.signed(gap.mean)}{', no interval' if gap.low is None else ''})"
            for label, gap in gaps.items()
        ]
    )


def _not_counted(comparison: Comparison) -> str:
    """Which models the counts leave out, and why."""
    lonely = sum(pair.difference.low is None for pair in comparison.pairs)
    short = [pair for pair in comparison.unranked if pair.claimed]
    ends = ", ".join(f"{pair.other.label} at {formats.count(pair.other.tokens)}" for pair in short)
    lost = sum(not pair.claimed for pair in comparison.unranked)
    gone = sum(one.diverged for one in comparison.apart)
    parts = (
        (lonely, "with too few seeds for an interval"),
        (len(short), f"that ended earlier and stand apart ({ends})"),
        (lost, "beside which seeds diverged"),
        (len(comparison.unmatched), "that share no stretch of training with it"),
        (gone, "that diverged"),
        (len(comparison.apart) - gone, "without figures"),
    )
    told = [f"{number} {words}" for number, words in parts if number]
    return f"Not counted: {formats.listing(told)}." if told else ""


def league_table(comparison: Comparison, brief: bool = False) -> Table:
    """One row a model, the reference among them where it stands at equal tokens; those that are not ranked last.

    Args:
        comparison: the models.
        brief: for a narrow place: no spread over seeds, and intervals at equal tokens only.
    """
    reference = comparison.groups[0]
    rows = [(pair.difference.mean, _row(comparison, pair.other, pair, brief)) for pair in ranked(comparison)]
    rows.append((0.0, _row(comparison, reference, None, brief)))
    rows.sort(key=lambda item: item[0])
    below = [_row(comparison, pair.other, pair, brief) for pair in comparison.unranked]
    below += [_row(comparison, group, None, brief) for group in comparison.unmatched]
    below += [_row_apart(one) for one in comparison.apart]
    return Table(
        title="All models",
        caption=f"Differences are in held-out loss from {reference.label}, below zero is better; with several seeds "
        f"their 95 % interval follows. In order of the loss after {formats.count(comparison.tokens)} tokens; who ended "
        "earlier, or lost a seed by divergence, stands below, in no order. At equal FLOPs or time each model is read "
        f"where it and {reference.label} have spent the same. Tokens to its best: when a model reaches the best loss "
        f"of {reference.label}, as a share of what that needed. State: numbers per token that the stream carries. "
        "Step time and peak memory are those of the process, relative to the reference's.",
        columns=(
            "model", "what it is", "seeds", "held-out loss", "at equal tokens", "at equal FLOPs", "at equal time",
            "tokens to its best", "parameters", "non-embedding", "state", "FLOPs per token", "step time", "peak memory",
            "peak rate",
        ),
        rows=(*(row for _, row in rows), *below),
        words=2,
    )  # fmt: skip


def _row(comparison: Comparison, group: Group, pair: Pair | None, brief: bool) -> tuple[str, ...]:
    run, reference = group.runs[0], comparison.groups[0]
    losses = [end.loss for end in group.ends]
    loss = formats.loss(fmean(losses)) if brief else formats.spread(losses)
    place = "" if group.tokens == comparison.tokens else f" at {formats.count(group.tokens)}"
    place += f", {group.skipped} skipped" if group.skipped else ""
    reached = pair.targets[0].ratio("tokens") if pair else 1.0
    unknown = not pair.claimed if pair else group is not reference
    return (
        group.label,
        str(run.config.get("description") or NONE),
        group.seeds.removesuffix("s").removesuffix(" seed"),
        f"{loss}{place}",
        *(_gap(pair, resource, brief and resource != "tokens") for resource in RESOURCES),
        NONE if unknown else "not reached" if reached is None else formats.percent(reached),
        *_model_figures(run),
        _relative(group, reference, "tokens_per_s", inverse=True),
        _relative(group, reference, "memory_bytes"),
        f"{run.config.get('optimizer', {}).get('lr', NONE)}",
    )


def _row_apart(one: Apart) -> tuple[str, ...]:
    """The row of a model without figures."""
    run = one.runs[0]
    about, rate = str(run.config.get("description") or NONE), run.config.get("optimizer", {}).get("lr", NONE)
    state = "diverged" if one.diverged else "no figure"
    return (
        one.label, about, f"0 of {len(one.runs)}", state, *[NONE] * 4, *_model_figures(run), NONE, NONE, str(rate)
    )  # fmt: skip


def _model_figures(run: Run) -> tuple[str, ...]:
    """Parameters, non-embedding parameters, state and FLOPs per token."""
    return (
        formats.count(run.parameters["total"]),
        formats.count(run.parameters["non_embedding"]),
        f"{run.info['summary']['stream_size']:,}",
        formats.flops(run.flops_per_token["train"]),
    )


def _gap(pair: Pair | None, resource: Resource, brief: bool) -> str:
    """A difference with its interval, and where it was taken if that is not where the others were."""
    if pair is None or resource not in pair.at_equal:
        return NONE
    if not pair.claimed:
        return "not claimed"
    interval = pair.at_equal[resource]
    ends = "" if interval.low is None or brief else f" ({formats.interval(interval.low, interval.high)})"
    early = resource == "tokens" and pair.other.tokens == pair.tokens < pair.reference.tokens
    return f"{formats.signed(interval.mean)}{ends}{f' at {formats.count(pair.tokens)}' if early else ''}"


def _relative(group: Group, reference: Group, figure: str, inverse: bool = False) -> str:
    """A figure of the training rows as a share of the reference's."""
    ours, theirs = _figure(group, figure), _figure(reference, figure)
    if ours is None or theirs is None:
        return NONE
    return formats.percent(theirs / ours if inverse else ours / theirs)


def _figure(group: Group, name: str) -> float | None:
    values = [value for run in group.runs if (value := train_figures(run)[name]) is not None]
    return fmean(values) if values else None
