"""The page of all studies: paper's number, ours, interval, scale; and for every number its run folder and command."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from widestream.errors import UserError, unknown_name
from widestream.files import read_json, write_text
from widestream.report.document import NARROW, WIDE, both_sizes, document, html_table
from widestream.report.figures.bars import BarChart, render_bars
from widestream.report.figures.forest import Forest, render_forest
from widestream.report.figures.svg import Chart
from widestream.study.page.analyses import study_section
from widestream.study.page.records import record_section
from widestream.study.page.resources import resources_section
from widestream.study.page.results import RECORD, load_results
from widestream.study.page.sections import Figure, Section

TITLE = "The RMT paper's studies, carried out again"
_WIDTH = 1072
"""Of a plot that has the page to itself."""
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
    write_text(out, page(sections))
    return sections


def find_sections(folders: Sequence[Path], names: Sequence[str] = ()) -> list[Section]:
    """Every section that folders have results for, in the paper's order.

    Raises:
        UserError: there are none, a name is unknown, or a record is damaged.
    """
    records = [
        path for folder in folders for ending in ("json", "json.xz") for path in sorted(folder.glob(f"*.{ending}"))
    ]
    found = [section for path in records if (section := _other_record(path)) is not None]
    found += [study_section(result) for folder in folders for result in load_results(folder)]
    if not found:
        raise UserError(f"{folders[0]} holds no results; give the folder or the archive that `widestream study` wrote.")
    found.append(resources_section())
    if names:
        known = sorted({_name(section) for section in found})
        missing = [name for name in names if name not in known]
        if missing:
            raise unknown_name(f"results {missing[0]!r}", missing[0], known)
        found = [section for section in found if _name(section) in names]
    return sorted(found, key=_place)


def _name(section: Section) -> str:
    """What a section is asked for by: the study's name, or the measurement's."""
    return section.name


def _place(section: Section) -> tuple[int, str]:
    return next((i for i, name in enumerate(ORDER) if section.key.startswith(name)), len(ORDER)), section.key


def _other_record(path: Path) -> Section | None:
    """The section of another measurement's record: moments, a coordinate check, a search; None for other files."""
    if path.name.endswith(RECORD):
        return None
    record = read_json(path)
    return record_section(path.name.split(".")[0], record) if isinstance(record, dict) else None


def page(sections: Sequence[Section]) -> str:
    """The page as one HTML document."""
    links = "".join(
        f'<li><a href="#{escape(section.key)}">{escape(section.title)}</a>{_first_answer(section)}</li>'
        for section in sections
    )
    intro = (
        f"<header>\n<h1>{escape(TITLE)}</h1>\n<p>Every figure is a mean over seeds with its 95 % interval, beside what "
        "the paper prints. Answers are made from the intervals: where one holds zero, no difference is seen. Runs at "
        "the scale of a CPU are thousands of times smaller than the paper's; they say what happens there, and nothing "
        f'is extrapolated.</p>\n<ul class="facts">{links}</ul>\n</header>'
    )
    return document(TITLE, [intro, *(_section(section) for section in sections)])


def _first_answer(section: Section) -> str:
    return f'<br><span class="soft">{escape(section.answers[0])}</span>' if section.answers else ""


def _section(section: Section) -> str:
    answers = "".join(f"<li>{escape(answer)}</li>" for answer in section.answers)
    mirrors = f" Repeats: {section.mirrors}." if section.mirrors else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in section.notes)
    folded = "\n".join(
        f"<details><summary>{escape(table.title)}</summary>{html_table(table, level=3)}</details>"
        for table in section.details
    )
    commands = escape("\n".join(section.commands))
    parts = [
        f'<section id="{escape(section.key)}">\n<h2>{escape(section.title)}</h2>',
        f"<p>{escape(section.question)}</p>" if section.question else "",
        f'<p class="soft">{escape(section.scale)}{escape(mirrors)}</p>',
        f'<ul class="facts">{answers}</ul>' if answers else "",
        _figures(section.charts),
        *(html_table(table, level=3) for table in section.tables),
        f'<ul class="cautions">{notes}</ul>' if notes else "",
        folded,
        f'<pre tabindex="0">{commands}</pre>' if commands else "",
        "</section>",
    ]
    return "\n".join(filter(None, parts))


def _figures(figures: Sequence[tuple[str, Figure]]) -> str:
    alone = [(caption, figure) for caption, figure in figures if isinstance(figure, Forest)]
    beside = [(caption, _drawn(figure)) for caption, figure in figures if not isinstance(figure, Forest)]
    parts = [
        f'<figure class="alone"><figcaption>{escape(caption)}</figcaption><div class="wide">'
        f'{render_forest(forest, _WIDTH)}</div><div class="narrow">{render_forest(forest, NARROW[0])}</div></figure>'
        for caption, forest in alone
    ]
    if beside:
        shown = "\n".join(
            f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}</figure>" for caption, drawing in beside
        )
        parts.append(f'<div class="charts">\n{shown}\n</div>')
    return "\n".join(parts)


def _drawn(figure: Chart | BarChart) -> str:
    if isinstance(figure, BarChart):
        return render_bars(figure, WIDE[0], figure.height)
    return both_sizes(figure)
