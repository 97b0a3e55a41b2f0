"""The page of all studies: paper's number, ours, interval, scale; and for every number its run folder and command."""

from collections.abc import Sequence
from pathlib import Path

from widestream.errors import UserError, unknown_name
from widestream.files import read_json, write_page
from widestream.report.page import render_page
from widestream.study.page.analyses import study_section
from widestream.study.page.record_sections import record_section
from widestream.study.page.resources import resources_section
from widestream.study.page.results import RECORD, Cache, load_result
from widestream.study.page.sections import Section

ORDER = ("resources", "moments", "ladder", "race", "stream_size", "variants", "data_lane", "ablations", "lead", "tune")
"""Studies in the paper's order; others follow by name."""


def write_studies(folders: Sequence[Path], out: Path, names: Sequence[str] = ()) -> list[Section]:
    """Write the page.

    Args:
        folders: of studies' records and of other measurements' JSON files.
        out: the HTML file.
        names: studies to show; default: all, and the paper's resources.

    Returns:
        What the page shows.

    Raises:
        UserError: nothing to report, an unknown name, a damaged record, or nowhere to write.
    """
    sections = find_sections(folders, names)
    write_page(out, studies_page(sections))
    return sections


def find_sections(folders: Sequence[Path], names: Sequence[str] = ()) -> list[Section]:
    """Every section that folders have results for, in the paper's order.

    A record that is damaged, or that nothing can be made of, has a section that says so; the others are whole. The
    paper's own resources stand beside studies that repeat the paper, or where they are asked for.

    Raises:
        UserError: there are none, or a name is unknown.
    """
    records = [
        path for folder in folders for ending in ("json", "json.xz") for path in sorted(folder.glob(f"*.{ending}"))
    ]
    cache: Cache = {}
    sections = [section for path in records if (section := _section(path, cache)) is not None]
    if not sections:
        raise UserError(f"{folders[0]} holds no results; give the folder or the archive that `widestream study` wrote.")
    paper = resources_section()
    if paper.name in names or any(section.mirrors for section in sections):
        sections.append(paper)
    if names:
        known = sorted({section.name for section in sections})
        missing = [name for name in names if name not in known]
        if missing:
            raise unknown_name(f"results {missing[0]!r}", missing[0], known)
        sections = [section for section in sections if section.name in names]
    return sorted(sections, key=_place)


def _section(path: Path, cache: Cache) -> Section | None:
    """The section of one record; None for a file that is no record of ours."""
    name = path.name.split(".")[0]
    try:
        if path.name.endswith(RECORD):
            return study_section(load_result(path, cache))
        record = read_json(path)
        return record_section(name, record) if isinstance(record, dict) else None
    except UserError as error:
        return _without_results(path, str(error))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Records are JSON of any age and origin: one that is no longer understood must not take the page with it.
        return _without_results(path, f"nothing can be made of {path}: {type(error).__name__}: {error}")


def _without_results(path: Path, why: str) -> Section:
    name = path.name.split(".")[0]
    return Section(key=name, name=name, title=name, scale="Not shown.", notes=[f"Not shown: {why}"])


def _place(section: Section) -> tuple[int, str]:
    return next((i for i, name in enumerate(ORDER) if section.key.startswith(name)), len(ORDER)), section.key


def studies_page(sections: Sequence[Section]) -> str:
    """The page as one HTML document."""
    paper = any(section.mirrors for section in sections)
    return render_page("studies_page.html", sections=sections, paper=paper)
