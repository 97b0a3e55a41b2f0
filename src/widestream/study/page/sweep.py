"""Loss against one size of the model, with slopes for every doubling (Figure 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from widestream.report import formats
from widestream.report.figures.chart import Chart, Series
from widestream.report.stats.fits import Slope, slope
from widestream.report.stats.intervals import SIGNIFICANT, holm
from widestream.report.table import Table
from widestream.study.page.results import ArmResult, StudyResult, unclaimable
from widestream.study.page.sections import (
    UNPRINTED,
    Section,
    answers_of,
    begin,
    contrast_table,
    contrasts,
    mean_loss,
    shown,
)


def sweep_section(result: StudyResult) -> Section:
    """Loss against one size: lines through groups of arms, with slopes for every doubling, and named contrasts."""
    section = begin(result)
    analysis = result.record["analysis"]
    trends: list[Trend] = []
    for entry in analysis["lines"]:
        groups = _line_groups(result, entry)
        found = [_trend(name, arms, result.diverged_in(name), entry) for name, arms in groups.items()]
        trends += [one for one in found if isinstance(one, Trend)]
        section.notes += [why for why in found if isinstance(why, str)]
        if len({arm.count(entry["x"]) for arms in groups.values() for arm in arms}) > 1:
            section.charts.append((entry["title"], _sweep_chart(groups, entry["x"])))
    if trends:
        steps, bends = holm([one.slope.per_doubling for one in trends]), _bends(trends)
        tested = sum(p is not None for p in steps)
        section.answers += [_in_words(one, p, bend, tested) for one, p, bend in zip(trends, steps, bends, strict=True)]
        section.tables.append(_slope_table(trends, steps, bends, result.record["scale"]))
    compared = contrasts(result, analysis.get("contrasts"))
    section.answers += answers_of(compared)
    if compared:
        section.tables.append(contrast_table(result, compared))
    return section


def _line_groups(result: StudyResult, entry: dict[str, Any]) -> dict[str, list[ArmResult]]:
    groups = {name: result.in_group(name) for name in entry["groups"]}
    for name, shared in (entry.get("shared") or {}).items():
        groups[name] += result.measured([shared])
    return {name: sorted(arms, key=lambda arm: arm.count(entry["x"])) for name, arms in groups.items() if arms}


def _sweep_chart(groups: dict[str, list[ArmResult]], x: str) -> Chart:
    series = []
    for number, (name, arms) in enumerate(groups.items()):
        points = tuple((arm.count(x), mean_loss(arm)) for arm in arms)
        finals = [arm.group.final for arm in arms if arm.group]
        band = tuple(
            (at, final.mean if final.low is None else final.low, final.mean if final.high is None else final.high)
            for (at, _), final in zip(points, finals, strict=True)
        )
        titles = tuple(f"{arm.name}, {arm.group.seeds}" for arm in arms if arm.group)
        value = formats.loss(points[-1][1])
        series.append(Series(points=points, colour=number, label=name, value=value, band=band, titles=titles))
    seen = [end for line in series for _, low, high in line.band for end in (low, high)]
    margin = 0.08 * (max(seen) - min(seen) or 1.0)
    words = {
        "stream_size": "cells of a token's stream",
        "parameters": "parameters",
        "head_dim": "head width (RMT: D_v)",
    }
    return Chart(
        title=f"Held-out loss over {words.get(x, x)}, with 95 % intervals over seeds",
        x_label=words.get(x, x),
        y_label="held-out loss (nats per token)",
        series=tuple(series),
        y_range=(min(seen) - margin, max(seen) + margin),
        log_x=True,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """A line of a sweep and its slope."""

    name: str
    """The group of arms."""
    entry: dict[str, Any]
    """The line in the study: title, x, the paper's words."""
    slope: Slope
    """Over seeds."""
    points: int
    """Arms on the line."""

    @property
    def size(self) -> str:
        """What grows along the line, in words."""
        words = {"stream_size": "stream", "head_dim": "head width", "parameters": "number of parameters"}
        return words.get(str(self.entry["x"]), str(self.entry["x"]))


def _trend(name: str, arms: list[ArmResult], gone: list[ArmResult], entry: dict[str, Any]) -> Trend | str:
    """The line through a group of arms, or why there is none, as where some of the group all diverged (`gone`)."""
    if refused := unclaimable([*arms, *gone]):
        return f"{name}: no slope is claimed ({refused})."
    found = slope([(arm.count(entry["x"]), arm.losses) for arm in arms])
    if found is not None:
        return Trend(name=name, entry=entry, slope=found, points=len(arms))
    places = {arm.count(entry["x"]) for arm in arms}
    if len(places) < 2:
        return f"{name}: no line, for its finished runs have one {entry['x']} only."
    return f"{name}: no line, for no seed is finished at every {entry['x']}."


def _bends(trends: Sequence[Trend]) -> list[float | None]:
    """p-values of the bends, corrected for their number."""
    bent = [i for i, one in enumerate(trends) if one.slope.bend is not None]
    corrected = holm([bend for one in trends if (bend := one.slope.bend) is not None])
    return [corrected[bent.index(i)] if i in bent else None for i in range(len(trends))]


def _in_words(trend: Trend, p: float | None, p_bend: float | None, lines: int) -> str:
    per, bend, name = trend.slope.per_doubling, trend.slope.bend, trend.name
    if per.low is None or p is None:
        told = f"{formats.signed(per.mean)} nats for every doubling of the {trend.size}"
        return f"{name}: {told}, one seed, which may be chance."
    corrected = f"; p {formats.p_value(p)} by Holm over {lines} lines" if lines > 1 else ""
    if p >= SIGNIFICANT:
        return f"{name}: no trend with the {trend.size} seen ({shown(per)} nats for every doubling{corrected})."
    sentence = f"{name}: {shown(per)} nats for every doubling of the {trend.size}{corrected}."
    if bend is None or p_bend is None:
        return sentence
    if p_bend >= SIGNIFICANT:
        return f"{sentence} No bend against the logarithm is seen."
    return f"{sentence} It {'flattens' if bend.mean * per.mean < 0 else 'steepens'} against the logarithm."


def _slope_table(
    trends: Sequence[Trend], steps: Sequence[float | None], bends: Sequence[float | None], scale: str
) -> Table:
    rows = (
        (
            f"{one.entry['title']}: {one.name}",
            one.entry.get("paper") or UNPRINTED,
            "falls at every step" if one.slope.falling else "does not fall at every step",
            shown(one.slope.per_doubling),
            formats.p_value(step),
            shown(one.slope.bend),
            formats.p_value(bend),
            str(one.points),
            scale,
        )
        for one, step, bend in zip(trends, steps, bends, strict=True)
    )
    return Table(
        title="Slopes",
        caption="Least squares of loss on log2 of the size, seed by seed; mean and 95 % t-interval. Bend: coefficient "
        "of the squared logarithm of a parabola. Zero inside: a straight line in the logarithm is not refuted. p: "
        f"corrected for {len(trends)} lines (Holm), the intervals not.",
        columns=("line", "paper", "ours", "nats per doubling", "p", "bend", "p of the bend", "points", "scale"),
        rows=tuple(rows),
    )
