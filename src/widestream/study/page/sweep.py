"""Loss against one size of the model, with slopes for every doubling (Figure 6)."""

from collections.abc import Sequence
from typing import Any

from widestream.report import formats
from widestream.report.figures.svg import Chart, Series
from widestream.report.stats.fits import slope
from widestream.report.table import Table
from widestream.study.page.results import ArmResult, StudyResult
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
    rows: list[tuple[str, ...]] = []
    for entry in analysis["lines"]:
        groups = _line_groups(result, entry)
        if not any(len(arms) > 1 for arms in groups.values()):
            continue
        section.charts.append((entry["title"], _sweep_chart(groups, entry["x"])))
        for name, arms in groups.items():
            sentence, row = _slope_row(name, arms, entry, result.record["scale"])
            if sentence:
                section.answers.append(sentence)
                rows.append(row)
    if rows:
        section.tables.append(_slope_table(rows))
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
        titles = tuple(f"{arm.name}: {formats.loss(mean_loss(arm))}" for arm in arms)
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


def _slope_row(name: str, arms: list[ArmResult], entry: dict[str, Any], scale: str) -> tuple[str, tuple[str, ...]]:
    trend = slope([(arm.count(entry["x"]), arm.losses) for arm in arms])
    if trend is None:
        return "", ()
    per = trend.per_doubling
    words = {"stream_size": "stream", "head_dim": "head width", "parameters": "number of parameters"}
    what = words.get(entry["x"], entry["x"])
    bend = trend.bend
    if per.low is None:
        sentence = f"{name}: {formats.signed(per.mean)} nats for every doubling of the {what}, one seed."
    elif per.holds_zero:
        sentence = f"{name}: no trend with the {what} seen ({shown(per)} nats for every doubling)."
    else:
        sentence = f"{name}: {shown(per)} nats for every doubling of the {what}."
        if bend is not None and bend.low is not None:
            sentence += (
                " No bend against the logarithm is seen."
                if bend.holds_zero
                else f" It {'flattens' if bend.mean * per.mean < 0 else 'steepens'} against the logarithm."
            )
    printed = entry.get("paper") or UNPRINTED
    step = "falls at every step" if trend.falling else "does not fall at every step"
    return sentence, (f"{entry['title']}: {name}", printed, step, shown(per), shown(bend), str(len(arms)), scale)


def _slope_table(rows: Sequence[tuple[str, ...]]) -> Table:
    return Table(
        title="Slopes",
        caption="Least squares of loss on log2 of the size, seed by seed; mean and 95 % interval. Bend: coefficient of "
        "the squared logarithm of a parabola. Zero inside: a straight line in the logarithm is not refuted.",
        columns=("line", "paper", "ours", "nats per doubling", "bend", "points", "scale"),
        rows=tuple(rows),
    )
