"""The runs of a study side by side, as `widestream compare` shows them: how the demo and the zoo end."""

from pathlib import Path

from widestream.report import Choice, Comparison, print_table, write_report
from widestream.runs.folder import is_run
from widestream.study.run import Outcome


def compare_runs(outcome: Outcome, search: Path | None = None) -> tuple[Comparison, Path]:
    """Write report.html beside a study's runs, and print the comparison.

    Args:
        outcome: the study.
        search: record of the search to show; default: the one that the study's rates come from.

    Returns:
        The comparison, and the page.

    Raises:
        UserError: a run failed, or nothing was evaluated.
    """
    failure = next((job.failure for job in outcome.jobs if job.failed), None)
    if failure is not None:
        raise failure
    if search is None and outcome.study.search is not None:
        search = outcome.study.search.record
    page = outcome.folder / "report.html"
    folders = [job.folder for job in outcome.jobs if is_run(job.folder)]
    comparison = write_report(folders, page, search=search, title=outcome.study.title, choice=_choice(outcome))
    print_table(comparison)
    return comparison, page


def _choice(outcome: Outcome) -> Choice:
    """The study's reference, and the arms that have another."""
    folders = {arm.name: job.folder.name for arm, job in zip(outcome.study.arms, outcome.jobs, strict=False)}
    pairs = ((arm.name, arm.against) for arm in outcome.study.arms if arm.against is not None)
    against = tuple((folders[name], folders[other]) for name, other in pairs)
    return Choice(reference=folders.get(outcome.study.reference or "") if against else None, against=against)
