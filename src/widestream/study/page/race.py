"""The race to the transformer's best loss (Tables 3 and 4), and whether the lead lasts."""

from statistics import fmean
from typing import Any

from widestream.report import formats
from widestream.report.comparison import compare
from widestream.report.figures.comparison_charts import gap_chart, loss_chart, over_resources
from widestream.report.stats.intervals import mean_interval
from widestream.report.stats.matched import RESOURCES, Resource, gap_at, reach
from widestream.report.stats.pairs import Pair
from widestream.report.table import NONE, Table
from widestream.study.page.results import ArmResult, Contrast, StudyResult, contrast, unclaimable
from widestream.study.page.sections import Section, at_equal_tokens, begin, contrast_table, shown


def race_section(result: StudyResult) -> Section:
    """Resources to the reference's best loss, seed by seed, beside Tables 3 and 4."""
    section = begin(result)
    other = next((name for name in result.arms if name != result.reference.name), None)
    one = contrast(result, other, result.reference.name) if other else None
    if one is None or one.pair is None:
        return section
    printed, scale = result.record["analysis"]["printed"], result.record["scale"]
    section.answers.append(at_equal_tokens(one))
    _draw(section, one)
    if one.refused:
        return section
    fewer = 1 - one.of.count("parameters") / one.against.count("parameters")
    gap, paper_gap = one.at_equal["tokens"], printed["loss"][1] - printed["loss"][0]
    ends = formats.interval(gap.low, gap.high)
    rows = (
        *(_saved_row(one.pair, resource, printed, scale) for resource in RESOURCES),
        ("parameters saved", formats.percent(printed["parameters"]), formats.percent(fewer), "exact", scale),
        ("held-out loss at equal tokens", formats.signed(paper_gap), formats.signed(gap.mean), ends, scale),
    )
    section.tables.append(
        Table(
            title=f"What {other} saves on its way to the {result.reference.name}'s best loss",
            caption="Saved: one minus what a run spends until its smoothed held-out loss first reaches the lowest of "
            "the reference's run of the same seed, as a share of what that run spent; mean over seeds and 95 % "
            "interval. The paper's FLOPs leave out the logits (erratum E8).",
            columns=("quantity", "paper", "ours", "95 % interval", "scale"),
            rows=rows,
        )
    )
    section.tables.append(contrast_table(result, [({"paper": paper_gap}, one)]))
    return section


def _draw(section: Section, one: Contrast) -> None:
    """Curves of both arms, those of diverged seeds too."""
    comparison = compare([run.path for arm in (one.against, one.of) if arm.group for run in arm.group.members])
    loss = over_resources(lambda resource: loss_chart(comparison, resource))
    gap = None if one.refused else over_resources(lambda resource: gap_chart(comparison, resource))
    section.charts += [(caption, chart) for caption, chart in (("Loss", loss), ("The gap", gap)) if chart is not None]


_SAVES = {"tokens": "tokens saved", "flops": "training FLOPs saved", "wall_s": "wall time saved"}


def _saved_row(pair: Pair, resource: Resource, printed: dict[str, Any], scale: str) -> tuple[str, ...]:
    ours, theirs = pair.other.by_seed(), pair.reference.by_seed()
    saved: list[float] = []
    shared = [seed for seed in theirs if seed in ours]
    for seed in shared:
        curve = pair.reference.curves[theirs[seed]]
        own, got = reach(curve, curve.best), reach(pair.other.curves[ours[seed]], curve.best)
        if own is not None and got is not None:
            saved.append(1 - getattr(got, resource) / getattr(own, resource))
    if not saved:
        return (_SAVES[resource], _percent(printed[resource]), "not reached", NONE, scale)
    share = mean_interval(saved)
    if len(saved) < len(shared):  # a mean over those that get there would flatter them
        words = f"{_percent(share.mean)} in {len(saved)} of {len(shared)} seeds; the others do not get there"
        return (_SAVES[resource], _percent(printed[resource]), words, NONE, scale)
    ends = NONE if share.low is None or share.high is None else f"{_percent(share.low)} to {_percent(share.high)}"
    return (_SAVES[resource], _percent(printed[resource]), _percent(share.mean), ends, scale)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-", "−")


def lead_section(result: StudyResult) -> Section:
    """The lead at the end of a short run, and along and at the end of a long one."""
    section = begin(result)
    pairs = [contrast(result, other, reference) for reference, other in result.record["analysis"]["pairs"]]
    if not all(one and one.pair for one in pairs):
        return section
    short, long = pairs
    assert short is not None
    assert long is not None
    section.answers = [
        _change(short.of, short.against, long.of, long.against),
        at_equal_tokens(short),
        at_equal_tokens(long),
    ]
    rows = [{"label": f"{one.of.name} against {one.against.name}"} for one in (short, long)]
    section.tables.append(contrast_table(result, list(zip(rows, (short, long), strict=True))))
    assert long.pair is not None
    if not long.refused:
        section.tables.append(_along(long.pair, bool(result.record["mirrors"])))
    comparison = compare([run.path for arm in (long.against, long.of) if arm.group for run in arm.group.members])
    if not long.refused and (chart := gap_chart(comparison)) is not None:
        section.charts.append(("The gap along the long runs", chart))
    section.charts.append(("Loss along the long runs", loss_chart(comparison, "tokens")))
    return section


def _change(mine: ArmResult, theirs: ArmResult, later: ArmResult, against: ArmResult) -> str:
    """Whether the difference at the end of the long runs is another than at the end of the short ones."""
    if refused := unclaimable([mine, theirs, later, against]):
        return f"Whether the lead lasts is not said: {refused}."
    seeds = [seed for seed in mine.losses if all(seed in arm.losses for arm in (theirs, later, against))]
    if not seeds:
        return "The short and the long runs have no seed in common."
    changes = [
        (later.losses[seed] - against.losses[seed]) - (mine.losses[seed] - theirs.losses[seed]) for seed in seeds
    ]
    change = mean_interval(changes)
    first = fmean(mine.losses[seed] - theirs.losses[seed] for seed in seeds)
    last = fmean(later.losses[seed] - against.losses[seed] for seed in seeds)
    movement = f"from {formats.signed(first)} to {formats.signed(last)} nats, by {shown(change)}"
    if change.low is None:
        return f"From the short runs to the long ones the difference moves {movement}; one seed, which may be chance."
    if change.holds_zero:
        return f"No change of the difference seen from the short runs to the long ones: {movement}."
    if first < 0 and last < 0:
        return f"From the short runs to the long ones the lead {'shrinks' if change.mean > 0 else 'grows'}: {movement}."
    return f"From the short runs to the long ones the difference moves {movement}."


def _along(pair: Pair, mirrors: bool) -> Table:
    """The difference at parts of the long run, over seeds; beside what others report, where the paper is repeated."""
    end = min(curve.tokens[-1] for group in (pair.reference, pair.other) for curve in group.curves)
    ours, theirs = pair.other.by_seed(), pair.reference.by_seed()
    rows = []
    for part in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0):
        differences = [
            gap_at(pair.reference.curves[theirs[seed]], pair.other.curves[ours[seed]], "tokens", part * end)
            for seed in theirs
            if seed in ours
        ]
        gaps = [gap for gap in differences if gap is not None]
        if gaps:
            rows.append((formats.count(part * end), f"{part:g}", shown(mean_interval(gaps)), str(len(gaps))))
    return Table(
        title="Along the long run",
        caption="Difference of the smoothed curves at equal tokens."
        + (" Public single runs report −0.105 fading to −0.002." if mirrors else ""),
        columns=("tokens", "part of the run", "difference", "seeds"),
        rows=tuple(rows),
    )
