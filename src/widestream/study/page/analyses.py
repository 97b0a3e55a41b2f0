"""What a study's page makes of its arms, by the `kind` of its `analysis`."""

from collections.abc import Callable, Sequence
from typing import Any

from widestream.report.figures.forest_plot import forest_of
from widestream.report.stats.intervals import Interval
from widestream.study.page.ladder import ladder_section
from widestream.study.page.race import lead_section, race_section
from widestream.study.page.results import StudyResult
from widestream.study.page.sections import (
    Section,
    begin,
    contrast_table,
    contrasts,
    said,
    said_at_parameters,
)
from widestream.study.page.sweep import sweep_section


def arms_section(result: StudyResult) -> Section:
    """Arms against the reference, or the contrasts that the study names."""
    section = begin(result)
    found = contrasts(result, result.record["analysis"].get("contrasts"))
    section.answers = [told for _, one in found for told in (said(one), said_at_parameters(one)) if told]
    if found:
        section.tables.append(contrast_table(result, found))
        section.charts.append(("Differences at equal tokens", forest_of(found_gaps(found))))
    return section


def found_gaps(found: Sequence[tuple[dict[str, Any], Any]]) -> list[tuple[str, Interval]]:
    """Name and difference at equal tokens of every contrast."""
    return [(row.get("label") or one.of.name, one.at_equal["tokens"]) for row, one in found if "tokens" in one.at_equal]


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
