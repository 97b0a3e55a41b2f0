"""The runs that lie on a disk: which there are, what they take, tags of one's own, and taking some away."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from widestream.errors import UserError, shown
from widestream.files import read_json, remove_folder, write_json
from widestream.runs.folder import CONFIG, MADE, claim_file, is_run, list_checkpoints, read_config, read_info
from widestream.runs.metrics import require_idle
from widestream.runs.read import load_run
from widestream.runs.settings import chosen

TAGS = "tags.json"
"""A list of words in a run's folder."""
_TAG = re.compile(r"[\w.+-]{1,64}")


@dataclass(frozen=True)
class Shelved:
    """A run folder as a list shows it."""

    folder: str
    """Where it is."""
    name: str
    """Of the recipe."""
    state: str
    """As `widestream compare` says it (done, running, diverged, ...), `made by` a command, or unreadable."""
    steps: int | None
    """Done so far."""
    loss: float | None
    """Of the last held-out evaluation."""
    started: str | None
    """When, in UTC."""
    bytes: int
    """On the disk."""
    checkpoints: int
    """How many."""
    tags: tuple[str, ...]
    """Words that somebody gave it."""
    why: str | None = None
    """What is wrong with one that is unreadable."""


def find_below(places: Sequence[Path]) -> list[Path]:
    """All run folders at and below some places, in order, moved-aside ones among them.

    Raises:
        UserError: a place does not exist.
    """
    found: dict[Path, None] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place} is no folder; give run folders, or folders that hold them.")
        found |= dict.fromkeys(_below(place))
    return list(found)


def _below(folder: Path) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    with contextlib.suppress(PermissionError):
        for inside in sorted(folder.iterdir()):
            if inside.is_dir() and not inside.is_symlink():
                yield from _below(inside)


def list_runs(places: Sequence[Path], only: Sequence[str] = (), tags: Sequence[str] = ()) -> list[Shelved]:
    """Look at all runs at and below some places.

    Args:
        places: folders.
        only: what a run must be like, one of these: a pattern of its name or folder, or `key=value` of its recipe.
        tags: all of which it must have.

    Raises:
        UserError: a place does not exist.
    """
    rows = ((run, _look(run)) for run in find_below(places))
    return [row for run, row in rows if {*tags} <= {*row.tags} and (not only or _is_like(run, row, only))]


def _is_like(run: Path, row: Shelved, only: Sequence[str]) -> bool:
    recipe = {} if row.state == "unreadable" else read_config(run)
    return any(chosen(one, (row.name,), run, recipe) for one in only)


def _look(folder: Path) -> Shelved:
    size, steps, tags = disk_bytes(folder), len(list_checkpoints(folder)), ()
    name = folder.name
    try:
        tags, name = read_tags(folder), str(read_config(folder).get("name") or name)
        if made := read_info(folder).get(MADE):
            started = read_info(folder).get("started")
            return Shelved(str(folder), name, f"made by {made['by']}", 0, None, started, size, steps, tags)
        run = load_run(folder)
    except UserError as error:
        return Shelved(str(folder), name, "unreadable", None, None, None, size, steps, tags, str(error))
    loss = run.final.loss if run.evals and run.state != "diverged" else None
    return Shelved(str(folder), name, run.state, run.steps, loss, run.info.get("started"), size, steps, tags)


def disk_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; what links point to is not counted."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 (a walk of many files)
    return total


def read_tags(run: Path) -> tuple[str, ...]:
    """A run's tags, sorted.

    Raises:
        UserError: the file is damaged.
    """
    path = run / TAGS
    if not os.path.lexists(path):
        return ()
    tags = read_json(path)
    if not isinstance(tags, list) or not all(isinstance(tag, str) and _TAG.fullmatch(tag) for tag in tags):
        raise UserError(f"{path} is no list of tags; remove it.")
    return tuple(sorted(tags))


def change_tags(run: Path, add: Sequence[str] = (), remove: Sequence[str] = ()) -> tuple[str, ...]:
    """Give a run tags, or take some away.

    Args:
        run: its folder.
        add: words of letters, digits and `. + - _`.
        remove: tags that it has.

    Returns:
        Those that it has now.

    Raises:
        UserError: it is no run, a tag is no such word, or one to be removed is not there.
    """
    if not is_run(run):
        raise UserError(f"{run} is no run folder (no config.yaml); give a folder that training wrote.")
    have = read_tags(run)
    for tag in add:
        if not _TAG.fullmatch(tag):
            raise UserError(f"The tag {shown(tag)!r} must be up to 64 letters, digits and any of . + - _")
    if lacking := [tag for tag in remove if tag not in have]:
        raise UserError(f"{run} has no tag {shown(lacking[0])}; it has {', '.join(have) or 'none'}.")
    tags = sorted({*have, *add} - {*remove})
    write_json(run / TAGS, tags)
    return tuple(tags)


def require_removable(run: Path) -> None:
    """Make sure that a folder is a run that nobody is at.

    Raises:
        UserError: it is none, or a process is training in it.
    """
    if not is_run(run) or run.is_symlink():
        raise UserError(f"{run} is no run folder (no config.yaml of its own); only those are removed.")
    require_idle(run)


def remove_runs(runs: Sequence[Path], checkpoints: bool = False) -> int:
    """Remove runs for good, or of each all checkpoints but the newest; all of them or, if one must stay, none.

    Args:
        runs: their folders.
        checkpoints: remove older checkpoints only.

    Returns:
        Bytes that were freed.

    Raises:
        UserError: see `require_removable`.
    """
    for run in runs:
        require_removable(run)
    doomed = [path for run in runs for path in _doomed(run, checkpoints)]
    freed = sum(
        disk_bytes(path) if path.is_dir() and not path.is_symlink() else path.lstat().st_size for path in doomed
    )
    for path in doomed:
        if path.is_dir():
            # Under another name and without its recipe first: a run that is half gone must not look like one.
            aside = path.with_name(f"{path.name}.removed")
            path.replace(aside)
            (aside / CONFIG).unlink(missing_ok=True)
            remove_folder(aside)
        else:
            path.unlink()
    return freed


def _doomed(run: Path, checkpoints: bool) -> list[Path]:
    if checkpoints:
        return [path for _, path in list_checkpoints(run)[:-1]]
    beside = (claim_file(run), run.with_name(f"{run.name}.log"))
    return [run, *(path for path in beside if path.is_file())]
