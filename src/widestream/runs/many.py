"""Opening run folders, one or many: `widestream.open`."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from widestream.errors import UserError
from widestream.runs.folder import first_seed, is_aside, is_run, read_config
from widestream.runs.opened import RunFolder
from widestream.runs.read import find_runs, load_run
from widestream.runs.row import run_row, setting_columns
from widestream.runs.settings import chosen, differing, settings

if TYPE_CHECKING:
    from widestream.runs.columns import Columns


class Runs(Sequence[RunFolder]):
    """Run folders in order; each is read when it is asked for.

    Args:
        runs: the folders.
    """

    def __init__(self, runs: Iterable[RunFolder]):
        self._runs = tuple(runs)

    def __repr__(self) -> str:
        return f"<{len(self)} runs: {', '.join(run.path.name for run in self)}>"

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[RunFolder]:
        return iter(self._runs)

    @overload
    def __getitem__(self, index: int) -> RunFolder: ...
    @overload
    def __getitem__(self, index: slice) -> "Runs": ...
    def __getitem__(self, index: int | slice) -> "RunFolder | Runs":
        return Runs(self._runs[index]) if isinstance(index, slice) else self._runs[index]

    def only(self, *wanted: str | Callable[[RunFolder], bool]) -> "Runs":
        """The runs that are like one of these, as `widestream compare --only` takes them.

        Args:
            wanted: what a run's name or folder is like (`rmt-*`), `key=value` of its recipe (`optimizer.lr=0.01`), or a
                function of the run.
        """
        return Runs(run for run in self if any(_is(run, one) for one in wanted))

    def without(self, *unwanted: str | Callable[[RunFolder], bool]) -> "Runs":
        """The other runs; see `only`."""
        return Runs(run for run in self if not any(_is(run, one) for one in unwanted))

    def table(self) -> "Columns":
        """One row a run: state, seeds, steps, last evaluation, costs, versions, machine, what differs in the recipes.

        A run that diverged has no loss there, so that it is in no mean over rows. One that cannot be read stands there
        with its folder, `state` unreadable and `why`.

        Returns:
            Numpy arrays by name; `to_pandas` of it makes a data frame.
        """
        from widestream.runs.columns import to_columns

        found, unread = [], []
        for run in self:
            try:
                found.append(load_run(run.path))
            except UserError as error:
                unread.append({"name": run.name, "folder": str(run.path), "state": "unreadable", "why": str(error)})
        keys = [*differing({str(run.path): settings(run.config) for run in found})]
        rows = [
            run_row(run, run.final if run.evals and run.state != "diverged" else None) | own
            for run, own in zip(found, setting_columns(found, ["optimizer.lr", *keys]), strict=True)
        ]
        return to_columns([*rows, *unread])


@overload
def open_run(path: Sequence[str | os.PathLike[str]]) -> Runs: ...
@overload
def open_run(path: str | os.PathLike[str]) -> Any: ...
def open_run(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> RunFolder | Runs:
    """Open a run folder, or many: `widestream.open("runs/demo/rmt-seed0")`, `widestream.open("runs/demo")`.

    Args:
        path: a folder that training wrote: a `RunFolder`. Of an arm with several seeds its name alone (`runs/demo/rmt`)
            opens the first. A folder that holds runs, a pattern (`runs/demo/rmt-*`), or a list of any of these: `Runs`.

    Raises:
        UserError: it is no run folder and holds none, or its config.yaml is damaged.
    """
    if not isinstance(path, str | os.PathLike):
        return Runs(RunFolder(run) for run in find_runs([found for one in path for found in _places(one)]))
    folder = Path(path)
    if not folder.exists() and folder.name and is_run(first := first_seed(folder)):
        return RunFolder(first)
    if is_run(folder) or (_places(path) == [folder] and not _runs_inside(folder)):
        return RunFolder(folder)
    return open_run([path])


def _places(path: str | os.PathLike[str]) -> list[Path]:
    """The folders that a path or pattern means."""
    folder = Path(path)
    if folder.exists() or not glob.has_magic(str(folder)):
        return [folder]
    matches = sorted(Path(found) for found in glob.glob(str(folder)))  # noqa: PTH207 (a Path takes no absolute pattern)
    found = [place for place in matches if not is_aside(place) and (is_run(place) or _runs_inside(place))]
    if not found:
        raise UserError(f"No run lies at {path}; give run folders, folders that hold them, or another pattern.")
    return found


def _runs_inside(folder: Path) -> bool:
    return folder.is_dir() and any(is_run(inside) for inside in folder.iterdir())


def _is(run: RunFolder, wanted: str | Callable[[RunFolder], bool]) -> bool:
    if callable(wanted):
        return bool(wanted(run))
    return chosen(wanted, (run.name,), run.path, read_config(run.path))
