"""The page of all studies: paper's number, ours, interval, scale; and for every number its run folder and command."""

from collections.abc import Sequence
from pathlib import Path

from widestream.errors import UserError, unknown_name
from widestream.files import read_json, write_text
from widestream.report.page import render_page
from widestream.study.page.analyses import study_section
from widestream.study.page.record_sections import record_section
from widestream.study.page.resources import resources_section
from widestream.study.page.results import RECORD, load_results
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
    write_text(out, studies_page(sections))
    return sections


def find_sections(folders: Sequence[Path], names: Sequence[str] = ()) -> list[Section]:
    """Every section that folders have results for, in the paper's order.

    Raises:
        UserError: there are none, a name is unknown, or a record is damaged.
    """
    records = [
        path for folder in folders for ending in ("json", "json.xz") for path in sorted(folder.glob(f"*.{ending}"))
    ]
    sections = [section for path in records if (section := _other_record(path)) is not None]
    sections += [study_section(result) for folder in folders for result in load_results(folder)]
    if not sections:
        raise UserError(f"{folders[0]} holds no results; give the folder or the archive that `widestream study` wrote.")
    sections.append(resources_section())
    if names:
        known = sorted({section.name for section in sections})
        missing = [name for name in names if name not in known]
        if missing:
            raise unknown_name(f"results {missing[0]!r}", missing[0], known)
        sections = [section for section in sections if section.name in names]
    return sorted(sections, key=_place)


def _place(section: Section) -> tuple[int, str]:
    return next((i for i, name in enumerate(ORDER) if section.key.startswith(name)), len(ORDER)), section.key


def _other_record(path: Path) -> Section | None:
    """The section of another measurement's record: moments, a coordinate check, a search; None for other files."""
    if path.name.endswith(RECORD):
        return None
    record = read_json(path)
    return record_section(path.name.split(".")[0], record) if isinstance(record, dict) else None


def studies_page(sections: Sequence[Section]) -> str:
    """The page as one HTML document."""
    return render_page("studies_page.html", sections=sections)
