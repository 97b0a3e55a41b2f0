"""The ladder: sizes of two families, each at 20 tokens per parameter, and the power laws through them (Figure 2)."""

import math
from statistics import fmean

from widestream.report import formats
from widestream.report.figures.svg import Chart, Series
from widestream.report.stats.fits import bootstrap_fits, fit_power_law, percentile_interval
from widestream.report.stats.intervals import mean_interval
from widestream.report.table import NONE, Table
from widestream.study.page.results import ArmResult, StudyResult
from widestream.study.page.sections import UNPRINTED, Section, begin, mean_loss, shown

AXES = {
    "parameters": "non-embedding parameters",
    "tokens": "training tokens",
    "flops": "training FLOPs, logits included",
}
"""What a ladder is drawn over."""


def ladder_section(result: StudyResult) -> Section:
    """Sizes of two families: power laws in parameters, tokens and FLOPs, with bootstrap bands."""
    section = begin(result)
    reference = result.record["analysis"]["reference"]
    families = list(dict.fromkeys(arm.entry["group"] for arm in result.measured()))
    rungs = {family: result.in_group(family) for family in families}
    if len(rungs.get(reference, [])) < 2:
        return section
    others = [family for family in families if family != reference and len(rungs[family]) > 1]
    rows = []
    for axis in AXES:
        section.charts.append((f"Loss over {AXES[axis]}", _ladder_chart(rungs, axis)))
        for other in others:
            sentence, row = saved(rungs[reference], rungs[other], axis)
            section.answers.append(sentence)
            rows.append(row)
    section.tables.append(_fit_table(rungs, result.record["scale"]))
    section.tables.append(
        Table(
            title="Resources to equal loss",
            caption="Read off power laws fitted to each seed, at the lowest mean loss that both families were measured "
            "at; a line may pass its last point by its own residual. Geometric mean over seeds and 95 % t-interval.",
            columns=("resource", "family", "paper", "share of the reference's", "95 % interval"),
            rows=tuple(rows),
            words=2,
        )
    )
    pairs = [
        {"of": mine.name, "against": theirs.name}
        for other in others
        for mine, theirs in zip(_all(result, other), _all(result, reference), strict=False)
        if mine.group is not None and theirs.group is not None
    ]
    section.tables.append(_rung_table(result, pairs))
    return section


def _all(result: StudyResult, family: str) -> list[ArmResult]:
    """A family's sizes, unmeasured ones too, so that like stands beside like."""
    return [arm for arm in result.arms.values() if arm.entry["group"] == family]


def _at(arm: ArmResult, axis: str) -> float:
    return arm.count("non_embedding" if axis == "parameters" else axis)


def _ladder_chart(rungs: dict[str, list[ArmResult]], axis: str) -> Chart:
    series = []
    for number, (family, arms) in enumerate(rungs.items()):
        points = {_at(arm, axis): list(arm.losses.values()) for arm in arms}
        fit = fit_power_law({x: fmean(losses) for x, losses in points.items()}) if len(points) > 1 else None
        titles = tuple(f"{arm.name}: {formats.loss(mean_loss(arm))}" for arm in arms)
        measured = tuple((x, fmean(losses)) for x, losses in points.items())
        for seed in sorted({seed for arm in arms for seed in arm.losses}):
            seen = tuple((_at(arm, axis), arm.losses[seed]) for arm in arms if seed in arm.losses)
            series.append(Series(points=seen, colour=number, thick=False))
        if fit is not None:
            samples = bootstrap_fits(points)
            band = tuple(
                (x, interval.low or 0.0, interval.high or 0.0)
                for x in points
                for interval in [percentile_interval(fit(x), [sample(x) for sample in samples], len(points[x]))]
            )
            label, value = family, f"x^−{fit.exponent:.3f}"
            series.append(Series(points=measured, colour=number, label=label, value=value, band=band, titles=titles))
        else:
            series.append(Series(points=measured, colour=number, label=family, titles=titles))
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
    """What the other family needs to the lowest loss that both have measured, as a share, in words and as a row."""
    points = [{_at(arm, axis): list(arm.losses.values()) for arm in arms} for arms in (reference, other)]
    means = [{x: fmean(losses) for x, losses in side.items()} for side in points]
    goal = max(min(side.values()) for side in means)
    name, family = AXES[axis], other[0].entry["group"]
    if goal > min(max(side.values()) for side in means):
        sentence = f"The losses of {family} and of the reference do not overlap: nothing can be read off."
        return sentence, (name, family, UNPRINTED, NONE, NONE)
    shared = set(reference[0].losses).intersection(*(arm.losses for arm in (*reference, *other)))
    logs = [math.log(_where(other, axis, seed, goal) / _where(reference, axis, seed, goal)) for seed in sorted(shared)]
    if not logs:
        return f"{family} and the reference have no seed in common.", (name, family, UNPRINTED, NONE, NONE)
    interval = mean_interval(logs)
    ratio = math.exp(interval.mean)
    if interval.low is None or interval.high is None:
        sentence = f"{family} takes {formats.percent(ratio)} of the reference's {name} to equal loss, one seed."
        return sentence, (name, family, UNPRINTED, formats.percent(ratio), NONE)
    ends = f"{formats.percent(math.exp(interval.low))} to {formats.percent(math.exp(interval.high))}"
    share = f"{formats.percent(ratio)} of the reference's {name} (95 % interval {ends})"
    if interval.holds_zero:
        sentence = f"No difference seen to equal loss: {family} takes {share}."
    else:
        sentence = f"{family} reaches {formats.loss(goal)} with {share}."
    return sentence, (name, family, UNPRINTED, formats.percent(ratio), ends)


def _where(arms: list[ArmResult], axis: str, seed: tuple[int, int], loss: float) -> float:
    """What one seed's line through all sizes needs to a loss."""
    return fit_power_law({_at(arm, axis): arm.losses[seed] for arm in arms}).where(loss)


def _fit_table(rungs: dict[str, list[ArmResult]], scale: str) -> Table:
    rows = []
    for family, arms in rungs.items():
        for axis, name in AXES.items():
            points = {_at(arm, axis): list(arm.losses.values()) for arm in arms}
            if len(points) < 2:
                continue
            fit = fit_power_law({x: fmean(losses) for x, losses in points.items()})
            interval = percentile_interval(fit.exponent, [one.exponent for one in bootstrap_fits(points)], len(arms))
            rows.append(
                (
                    family, name, UNPRINTED, f"{fit.exponent:.4f}", f"{interval.low:.4f} to {interval.high:.4f}",
                    str(len(points)), scale,
                )
            )  # fmt: skip
    return Table(
        title="Power laws",
        caption="loss = a x^−b, least squares in logarithms through the means over seeds; no irreducible loss. "
        "Intervals: 2.5 and 97.5 percentiles of 2,000 bootstrap samples of the seeds, which with three seeds are "
        "narrow. The exponents of Figure 2 are printed nowhere.",
        columns=("family", "x", "paper's b", "ours", "95 % interval", "sizes", "scale"),
        rows=tuple(rows),
        words=2,
    )


def _rung_table(result: StudyResult, pairs: list[dict[str, str]]) -> Table:
    """Sizes beside each other, each at its own 20 tokens per parameter."""
    rows = []
    for pair in pairs:
        mine, theirs = result.arms[pair["of"]], result.arms[pair["against"]]
        shared = [seed for seed in mine.losses if seed in theirs.losses]
        gap = mean_interval([mine.losses[seed] - theirs.losses[seed] for seed in shared]) if shared else None
        rows.append(
            (
                f"{mine.name} against {theirs.name}",
                formats.loss(mean_loss(theirs)),
                formats.loss(mean_loss(mine)),
                shown(gap),
                *(formats.percent(_at(mine, axis) / _at(theirs, axis)) for axis in AXES),
            )
        )
    return Table(
        title="Rung by rung",
        caption="Each at 20 tokens per non-embedding parameter of its own, so RMT has fewer tokens than the "
        "transformer beside it. Difference seed by seed, with its 95 % interval.",
        columns=("sizes", "transformer", "RMT", "difference", "of its parameters", "of its tokens", "of its FLOPs"),
        rows=tuple(rows),
    )
