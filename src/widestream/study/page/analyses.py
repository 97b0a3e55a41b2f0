"""What a study's page makes of its arms, by the `kind` of its `analysis`."""

from collections import Counter
from collections.abc import Callable

from widestream.report import formats
from widestream.report.figures.rows import forest_of
from widestream.report.table import Table
from widestream.study.page.ladder import ladder_section
from widestream.study.page.race import lead_section, race_section
from widestream.study.page.results import StudyResult
from widestream.study.page.sections import (
    UNPRINTED,
    Compared,
    Section,
    answers_of,
    begin,
    contrast_table,
    contrasts,
    diverged_sentences,
)
from widestream.study.page.sweep import sweep_section


def arms_section(result: StudyResult) -> Section:
    """Arms against the reference, or the contrasts that the study names."""
    section = begin(result)
    compared = contrasts(result, result.record["analysis"].get("contrasts"))
    section.answers = answers_of(compared)
    if compared:
        section.tables.append(contrast_table(result, compared))
        _draw(section, compared)
    return section


def _draw(section: Section, compared: Compared) -> None:
    """The differences that are claimed and taken after the same number of tokens, side by side."""
    pairs = [one.pair for _, one in compared if one.pair and not one.refused]
    if not pairs:
        return
    ends = Counter(pair.tokens for pair in pairs)
    most = max(ends, key=lambda end: (ends[end], end))
    named = [(row.get("label") or one.of.name, one) for row, one in compared]
    claimed = [(name, one) for name, one in named if not one.refused]
    beside = [(name, one.at_equal["tokens"]) for name, one in claimed if one.pair and one.pair.tokens == most]
    shown = "Differences at equal tokens, each with its own 95 % interval"
    if elsewhere := [name for name, one in claimed if not one.pair or one.pair.tokens != most]:
        shown += f". All after {formats.count(most)} tokens; not shown: {formats.listing(elsewhere)}"
    if left_out := [name for name, one in named if one.refused]:
        shown += f". No difference is claimed, and none is shown, for {formats.listing(left_out)}"
    section.charts.append((shown, forest_of(beside)))


ANALYSES: dict[str, Callable[[StudyResult], Section]] = {
    "arms": arms_section,
    "ladder": ladder_section,
    "race": race_section,
    "lead": lead_section,
    "sweep": sweep_section,
}
"""By the `kind` of a study's `analysis`."""


def study_section(result: StudyResult) -> Section:
    """The section of a study; one without a kind of its own compares its arms.

    What diverged comes first. Of a study that repeats no part of the paper, columns for the paper's numbers are left
    out.
    """
    section = ANALYSES[result.record["analysis"].get("kind", "arms")](result)
    section.answers = [*diverged_sentences(result), *section.answers]
    if not section.mirrors:
        section.tables = [_without_paper(table) for table in section.tables]
        section.details = [_without_paper(table) for table in section.details]
    return section


def _without_paper(table: Table) -> Table:
    """The table without columns in which the paper has no number."""
    empty = [
        name
        for i, name in enumerate(table.columns)
        if name.startswith("paper") and all(row[i] == UNPRINTED for row in table.rows)
    ]
    return table.without(*empty)
