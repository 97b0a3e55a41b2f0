"""What a study's page makes of its arms, by the `kind` of its `analysis`."""

from collections.abc import Callable, Sequence
from typing import Any

from widestream.report.intervals import Interval
from widestream.report.studies.ladder import ladder_section
from widestream.report.studies.race import lead_section, race_section
from widestream.report.studies.results import StudyResult
from widestream.report.studies.sections import (
    Section,
    begin,
    contrast_table,
    contrasts,
    said,
    shown,
)
from widestream.report.studies.sweep import sweep_section
from widestream.report.svg import Chart, Series


def arms_section(result: StudyResult) -> Section:
    """Arms against the reference, or the contrasts that the study names."""
    section = begin(result)
    found = contrasts(result, result.record["analysis"].get("contrasts"))
    section.answers = [said(one) for _, one in found]
    if found:
        section.tables.append(contrast_table(result, found))
        section.charts.append(("Differences at equal tokens", forest(found_gaps(found))))
    return section


def found_gaps(found: Sequence[tuple[dict[str, Any], Any]]) -> list[tuple[str, Interval]]:
    """Name and difference at equal tokens of every contrast."""
    return [(row.get("label") or one.of.name, one.at_equal["tokens"]) for row, one in found if "tokens" in one.at_equal]


def forest(gaps: Sequence[tuple[str, Interval]]) -> Chart:
    """Differences as points with their intervals, one place each along the axis."""
    series = []
    for place, (name, gap) in enumerate(gaps):
        low, high = (gap.mean if end is None else end for end in (gap.low, gap.high))
        colour = 5 if gap.holds_zero or gap.low is None else 0 if gap.mean < 0 else 1
        series.append(Series(points=((place, low), (place, high)), colour=colour, thick=False))
        told = f"{name}: {shown(gap)}"
        series.append(Series(points=((place, gap.mean),), colour=colour, titles=(told,), label=f"{place}: {name}"))
    ends = [value for _, gap in gaps for value in (gap.mean, gap.low, gap.high) if value is not None]
    margin = 0.1 * (max([0.0, *ends]) - min([0.0, *ends]) or 1.0)
    return Chart(
        title="Differences in held-out loss with 95 % intervals",
        x_label="comparison, as numbered",
        y_label="nats per token: below zero is better",
        series=tuple(series),
        y_range=(min([0.0, *ends]) - margin, max([0.0, *ends]) + margin),
        zero=True,
    )


ANALYSES: dict[str, Callable[[StudyResult], Section]] = {
    "arms": arms_section,
    "ladder": ladder_section,
    "race": race_section,
    "lead": lead_section,
    "sweep": sweep_section,
}
"""By the `kind` of a study's `analysis`."""


def study_section(result: StudyResult) -> Section:
    """The section of a study; one without a kind of its own compares its arms."""
    return ANALYSES[result.record["analysis"].get("kind", "arms")](result)
