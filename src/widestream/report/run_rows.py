"""All runs of a comparison as one tidy table, a row a run: `widestream compare --csv`."""

import csv
import io
from pathlib import Path
from typing import Any

from widestream.errors import UserError
from widestream.files import write_text
from widestream.report.comparison import Comparison
from widestream.runs.read import Evaluation, Run
from widestream.runs.row import run_row, setting_columns
from widestream.runs.settings import differing, settings

_BEGINNING = "model,counted,name,folder,"
"""Of every table."""


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for every run, those too that do not count, model by model.

    Behind `model` and `counted` come the columns of `run_row`, then what differs between the recipes. Loss and what was
    spent on it are those that stand in the comparison; a run that does not count has none, so that no mean over rows is
    of survivors or of losses at other tokens.
    """
    entries: list[tuple[str, Run, Evaluation | None]] = []
    for group in comparison.groups:
        ends = dict(zip((run.path for run in group.runs), group.ends, strict=True))
        entries += [(group.label, run, ends.get(run.path)) for run in group.members]
    entries += [(one.label, run, None) for one in comparison.apart for run in one.runs]
    runs = [run for _, run, _ in entries]
    keys = list(dict.fromkeys(["optimizer.lr", *differing({str(run.path): settings(run.config) for run in runs})]))
    return [
        {"model": label, "counted": end is not None, **run_row(run, end), **own}
        for (label, run, end), own in zip(entries, setting_columns(runs, keys), strict=True)
    ]


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write the table, over an older one at most.

    Raises:
        UserError: a file of another kind lies there, or it cannot be written.
    """
    if path.is_file() and not path.read_bytes().startswith(_BEGINNING.encode()):
        raise UserError(f"{path} is no table of runs and stays as it is; give the name of another file.")
    write_text(path, to_csv(comparison))


def to_csv(comparison: Comparison) -> str:
    """The table as comma-separated text with a head; what is missing is empty."""
    rows = run_rows(comparison)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
