"""What a study's page makes of its arms, by the `kind` of its `analysis`."""

from collections.abc import Callable

from widestream.report.figures.rows import forest_of
from widestream.study.page.ladder import ladder_section
from widestream.study.page.race import lead_section, race_section
from widestream.study.page.results import StudyResult
from widestream.study.page.sections import Section, answers_of, begin, contrast_table, contrasts
from widestream.study.page.sweep import sweep_section


def arms_section(result: StudyResult) -> Section:
    """Arms against the reference, or the contrasts that the study names."""
    section = begin(result)
    compared = contrasts(result, result.record["analysis"].get("contrasts"))
    section.answers = answers_of(compared)
    if compared:
        section.tables.append(contrast_table(result, compared))
        gaps = [
            (row.get("label") or one.of.name, one.at_equal["tokens"])
            for row, one in compared
            if "tokens" in one.at_equal
        ]
        section.charts.append(("Differences at equal tokens, each with its own 95 % interval", forest_of(gaps)))
    return section


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
