"""The ladder: sizes of two families, each at 20 tokens per parameter, and the power laws through them (Figure 2)."""

import math
from collections.abc import Sequence

from widestream.report import formats
from widestream.report.figures.chart import Chart, Series
from widestream.report.stats.fits import PowerLaw, fit_by_seed
from widestream.report.stats.intervals import Interval, mean_interval
from widestream.report.table import NONE, Table
from widestream.study.page.results import ArmResult, StudyResult, unclaimable
from widestream.study.page.sections import UNPRINTED, Section, begin, mean_loss, shown

AXES = {
    "parameters": "non-embedding parameters",
    "tokens": "training tokens",
    "flops": "training FLOPs (logits included)",
}
"""What a ladder is drawn over."""


def ladder_section(result: StudyResult) -> Section:
    """Sizes of two families: power laws in parameters, tokens and FLOPs, with 95 % bands over seeds."""
    section = begin(result)
    reference = result.record["analysis"]["reference"]
    families = list(dict.fromkeys(arm.entry["group"] for arm in result.measured()))
    rungs = {family: result.in_group(family) for family in families}
    if len(rungs.get(reference, [])) < 2:
        return section
    others = [family for family in families if family != reference and len(rungs[family]) > 1]
    rows = []
    for axis in AXES:
        if len({_at(arm, axis) for arms in rungs.values() for arm in arms}) > 1:
            section.charts.append((f"Loss over {AXES[axis]}", _ladder_chart(rungs, axis)))
        for other in others:
            sentence, row = saved(_all(result, reference), _all(result, other), axis)
            section.answers.append(sentence)
            rows += [row] if row else []
    section.tables.append(_fit_table(result, rungs))
    if rows:
        section.tables.append(_saved_table(rows))
    for other in others:
        if len(_all(result, other)) == len(_all(result, reference)):
            section.tables.append(_rung_table(result, reference, other))
        else:
            section.notes.append(f"{other} and {reference} have different numbers of sizes: none stand side by side.")
    return section


def _saved_table(rows: Sequence[tuple[str, ...]]) -> Table:
    return Table(
        title="Resources to equal loss",
        caption="Read off power laws fitted to each seed, at the lowest mean loss that both families were measured at; "
        "a line may pass its last point by its own residual. Geometric mean over seeds and 95 % t-interval.",
        columns=("resource", "family", "paper", "share of the reference's", "95 % interval"),
        rows=tuple(rows),
        words=2,
    )


def _all(result: StudyResult, family: str) -> list[ArmResult]:
    """A family's sizes, unmeasured ones too, so that like stands beside like."""
    return [arm for arm in result.arms.values() if arm.entry["group"] == family]


def _at(arm: ArmResult, axis: str) -> float:
    return arm.count("non_embedding" if axis == "parameters" else axis)


def _fits(arms: Sequence[ArmResult], axis: str) -> dict[tuple[int, int], PowerLaw]:
    """A power law through all sizes for every seed that they share; empty where they do not differ on an axis."""
    return fit_by_seed([(_at(arm, axis), arm.losses) for arm in arms])


def _log_losses(fits: dict[tuple[int, int], PowerLaw], x: float) -> Interval:
    """Logarithm of the loss at x by the fits, over seeds."""
    return mean_interval([math.log(fit(x)) for fit in fits.values()])


def _ladder_chart(rungs: dict[str, list[ArmResult]], axis: str) -> Chart:
    series = []
    for number, (family, arms) in enumerate(rungs.items()):
        titles = tuple(arm.name for arm in arms)
        measured = tuple((_at(arm, axis), mean_loss(arm)) for arm in arms)
        for seed in sorted({seed for arm in arms for seed in arm.losses}):
            seen = tuple((_at(arm, axis), arm.losses[seed]) for arm in arms if seed in arm.losses)
            series.append(Series(points=seen, colour=number, thick=False))
        fits = _fits(arms, axis)
        value = f"x^−{mean_interval([fit.exponent for fit in fits.values()]).mean:.3f}" if fits else ""
        bands = [(x, _log_losses(fits, x)) for x, _ in measured] if len(fits) > 1 else []
        band = tuple((x, math.exp(ends.low or 0.0), math.exp(ends.high or 0.0)) for x, ends in bands)
        series.append(Series(points=measured, colour=number, label=family, value=value, band=band, titles=titles))
    seen = [loss for arms in rungs.values() for arm in arms for loss in arm.losses.values()]
    margin = 0.08 * (max(seen) - min(seen) or 1.0)
    return Chart(
        title=f"Held-out loss of every size over {AXES[axis]}",
        x_label=AXES[axis],
        y_label="held-out loss (nats per token)",
        series=tuple(series),
        y_range=(min(seen) - margin, max(seen) + margin),
        log_x=True,
    )


def saved(reference: list[ArmResult], other: list[ArmResult], axis: str) -> tuple[str, tuple[str, ...]]:
    """What the other family needs to the lowest loss that both have measured, as a share, in words and as a row.

    The row is empty, and the words say why, where nothing can be read off, as where a size diverged.
    """
    name, family = AXES[axis], other[0].entry["group"]
    if refused := unclaimable([*reference, *other]):
        return f"Nothing is read off over {name} for {family}: {refused}.", ()
    reference, other = ([arm for arm in side if arm.losses] for side in (reference, other))
    fits = [_fits(arms, axis) for arms in (reference, other)]
    if len({_at(arm, axis) for arm in reference}) < 2 or len({_at(arm, axis) for arm in other}) < 2:
        return f"All sizes of a family have the same {name}: there is no power law over them.", ()
    means = [[mean_loss(arm) for arm in arms] for arms in (reference, other)]
    goal = max(min(side) for side in means)
    if goal > min(max(side) for side in means):
        return f"The losses of {family} and of the reference do not overlap: nothing can be read off over {name}.", ()
    shared = sorted(fits[0].keys() & fits[1].keys())
    if not shared:
        return f"{family} and the reference have no seed in common at all sizes.", ()
    ends = [[side[seed].log_where(goal) for side in fits] for seed in shared]
    logs = [ours - theirs for theirs, ours in ends if theirs is not None and ours is not None]
    if len(logs) < len(shared):
        return f"The loss does not fall with {name} for every seed: nothing can be read off.", ()
    return _saved(family, name, goal, mean_interval(logs))


def _saved(family: str, name: str, goal: float, logs: Interval) -> tuple[str, tuple[str, ...]]:
    """A share of the reference's spending, from its logarithm over seeds, in words and as a row."""
    ratio = formats.percent(math.exp(logs.mean))
    if logs.low is None or logs.high is None:
        sentence = f"{family} takes {ratio} of the reference's {name} to equal loss, one seed, which may be chance."
        return sentence, (name, family, UNPRINTED, ratio, NONE)
    ends = f"{formats.percent(math.exp(logs.low))} to {formats.percent(math.exp(logs.high))}"
    share = f"{ratio} of the reference's {name} (95 % interval {ends})"
    if logs.holds_zero:
        sentence = f"No difference seen to equal loss: {family} takes {share}."
    else:
        sentence = f"{family} reaches {formats.loss(goal)} with {share}."
    return sentence, (name, family, UNPRINTED, ratio, ends)


def _fit_table(result: StudyResult, rungs: dict[str, list[ArmResult]]) -> Table:
    rows = []
    for family, arms in rungs.items():
        planned = len(_all(result, family))
        sizes = f"{len(arms)} of {planned}" if len(arms) < planned else str(planned)
        most = max(len(arm.entry["runs"]) for arm in arms)
        for axis, name in AXES.items():
            fits = _fits(arms, axis)
            if not fits:
                continue
            found = mean_interval([fit.exponent for fit in fits.values()])
            ends = NONE if found.low is None else f"{found.low:.4f} to {found.high:.4f}"
            seeds = f"{found.n} of {most}" if found.n < most else str(found.n)
            row = (family, name, UNPRINTED, f"{found.mean:.4f}", ends, sizes, seeds, result.record["scale"])
            rows.append(row)
    return Table(
        title="Power laws",
        caption="loss = a x^−b, least squares in logarithms for every seed that all sizes have; no irreducible loss. "
        "Mean and 95 % t-interval over seeds."
        + (" The exponents of Figure 2 are printed nowhere." if result.record["mirrors"] else ""),
        columns=("family", "x", "paper's b", "ours", "95 % interval", "sizes", "seeds", "scale"),
        rows=tuple(rows),
        words=2,
    )


def _rung_table(result: StudyResult, reference: str, other: str) -> Table:
    """Sizes of two families beside each other."""
    rows = []
    for mine, theirs in zip(_all(result, other), _all(result, reference), strict=True):
        if mine.group is None or theirs.group is None:
            continue
        shared = [seed for seed in mine.losses if seed in theirs.losses]
        gap = mean_interval([mine.losses[seed] - theirs.losses[seed] for seed in shared]) if shared else None
        rows.append(
            (
                f"{mine.name} against {theirs.name}",
                formats.loss(mean_loss(theirs)),
                formats.loss(mean_loss(mine)),
                NONE if unclaimable([mine, theirs]) else shown(gap),
                *(formats.percent(_at(mine, axis) / _at(theirs, axis)) for axis in AXES),
            )
        )
    return Table(
        title="Rung by rung",
        caption=f"{_length(result)}. Difference seed by seed with its 95 % interval, "
        "not corrected for the number of rungs.",
        columns=("sizes", reference, other, "difference", "of its parameters", "of its tokens", "of its FLOPs"),
        rows=tuple(rows),
    )


def _length(result: StudyResult) -> str:
    """After how many tokens sizes are compared: as many in all, as many for every parameter, or of their own each."""
    if len({arm.count("tokens") for arm in result.measured()}) == 1:
        return "All after the same number of tokens"
    lengths = {arm.entry["tokens_per_parameter"] for arm in result.arms.values()}
    length = lengths.pop() if len(lengths) == 1 else None
    words = "Each with its own number of tokens"
    return words if length is None else f"{words}, {length:g} for each of its non-embedding parameters"
