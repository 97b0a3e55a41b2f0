"""A copy of a run behind a URL (s3://bucket/run, gs://..., whatever fsspec opens), for machines that are taken away.

Checkpoints are copied once they are complete: first what a run needs to go on from them, then their files, and last
`complete.json`, so that what is there by that name is whole. A run folder that is not here, or has no checkpoint left,
gets them from the copy, and the run goes on from it.
"""

import contextlib
import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from widestream.data.names import shown
from widestream.data.remote import file_system, url_of
from widestream.data.tokenizer import TOKENIZER_FILE
from widestream.errors import UserError
from widestream.files import remove_folder, write_atomic
from widestream.runs.checkpoint import COMPLETE, UNFINISHED, expected_files, folder_name
from widestream.runs.folder import CHECKPOINTS, CONFIG, DONE, INFO, METRICS, is_run, list_checkpoints, read_info
from widestream.runs.rows import WRITTEN, parse_written

_SMALL = (TOKENIZER_FILE, INFO, METRICS, CONFIG)
"""Files of a run beside its checkpoints; the recipe comes last, for it makes a folder a run."""

log = logging.getLogger(__name__)


class Mirror:
    """Keeps a copy behind a URL.

    Args:
        run_dir: the run's folder.
        url: where the copy lies.

    Raises:
        UserError: it is no URL, or there is no way to open it.
    """

    def __init__(self, run_dir: Path, url: str):
        if url_of(url) is None:
            raise UserError(f"train.mirror is {shown(url)}; give a URL that fsspec knows, such as s3://bucket/run.")
        self._run_dir, self._url = run_dir, url
        self._system, self._place = file_system(url)
        self._thread = ThreadPoolExecutor(1, "mirror")
        self._pending: Future[None] | None = None

    def push(self) -> None:
        """Copy what is new, behind the caller's back; what an earlier call still copies comes first.

        A copy that fails is said, and the next one tries again.
        """
        self._pending = self._thread.submit(self._push)

    def close(self) -> None:
        """Wait for what is being copied."""
        self._thread.shutdown()

    def _push(self) -> None:
        try:
            self._copy()
        except Exception as error:  # every kind of storage has errors of its own
            log.warning(
                "%s was not copied to %s (%s); the next checkpoint tries again.", self._run_dir, self._url, error
            )

    def _copy(self) -> None:
        self._system.invalidate_cache()
        here = dict(list_checkpoints(self._run_dir))
        for name in _SMALL:  # rows only grow, so these serve the checkpoints that are there too
            self._put_if_here(name)
        for step in sorted(here):
            with contextlib.suppress(FileNotFoundError):  # it was removed for a newer one
                self._copy_checkpoint(here[step])
        self._put_if_here(DONE)
        newest = max(self._complete() & here.keys(), default=0)
        for step in self._steps() - here.keys():
            if step < newest:  # the run has removed it, or it was copied by half; a later one the run has yet to reach
                self._remove(f"{CHECKPOINTS}/{folder_name(step)}")

    def _copy_checkpoint(self, folder: Path) -> None:
        """Copy a checkpoint, unless that is done already, or it is damaged here."""
        fault, files = expected_files(folder)
        if fault is not None or any(path.stat().st_size != size for path, size, _ in files):
            return
        name, complete = f"{CHECKPOINTS}/{folder.name}", (folder / COMPLETE).read_bytes()
        sizes = {path.name: size for path, size, _ in files} | {COMPLETE: len(complete)}
        there = self._sizes(name)
        if sizes.items() <= there.items() and self._read(f"{name}/{COMPLETE}") == complete:
            return
        if COMPLETE in there:  # a damaged copy, or of steps that the run has gone back from: not whole from here on
            self._remove(f"{name}/{COMPLETE}")
        for file in sizes:  # complete.json is the last
            self._put(folder / file, f"{name}/{file}")

    def _put_if_here(self, name: str) -> None:
        if (self._run_dir / name).is_file():
            self._put(self._run_dir / name, name)

    def _put(self, path: Path, name: str) -> None:
        target = f"{self._place}/{name}"
        self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._system.put_file(str(path), target)

    def _remove(self, name: str) -> None:
        self._system.rm(f"{self._place}/{name}", recursive=True)

    def _read(self, name: str) -> bytes:
        return self._system.cat_file(f"{self._place}/{name}")

    def _there(self, name: str) -> bool:
        return self._system.exists(f"{self._place}/{name}")

    def _sizes(self, name: str) -> dict[str, int]:
        """Bytes of the files in a folder there."""
        listed = self._system.ls(f"{self._place}/{name}", detail=True) if self._there(name) else []
        return {str(entry["name"]).rstrip("/").rpartition("/")[2]: entry["size"] for entry in listed}

    def _steps(self) -> set[int]:
        """Steps of the checkpoints that are there, whole or not."""
        place = f"{self._place}/{CHECKPOINTS}"
        if not self._system.exists(place):
            return set()
        names = [str(path).rstrip("/").rpartition("/")[2] for path in self._system.ls(place, detail=False)]
        return {int(name[5:]) for name in names if name.startswith("step_") and name[5:].isdecimal()}

    def _complete(self) -> set[int]:
        """Those that are whole."""
        return {step for step in self._steps() if self._there(f"{CHECKPOINTS}/{folder_name(step)}/{COMPLETE}")}

    def restore(self) -> bool:
        """Fetch the run, unless its folder is here or nothing is there; where only its checkpoints are gone, these.

        Returns:
            Whether anything was fetched.

        Raises:
            UserError: it cannot be read.
        """
        try:
            self._system.invalidate_cache()
            here = is_run(self._run_dir)
            if not self._there(CONFIG) or (here and (list_checkpoints(self._run_dir) or not self._is_own())):
                return False
            return self._fetch(here)
        except UserError:
            raise
        except Exception as error:  # every kind of storage has errors of its own
            raise UserError(
                f"The run cannot be fetched from {shown(self._url)} ({type(error).__name__}: "
                f"{shown(str(error)[:200])}): check the network and your rights there, or leave out train.mirror."
            ) from error

    def _fetch(self, here: bool) -> bool:
        """Fetch all checkpoints, and before them the rows that they are held to; the recipe last, unless it is here."""
        self._run_dir.mkdir(parents=True, exist_ok=True)
        for name in _SMALL:
            if name != CONFIG and self._there(name) and not (here and (self._run_dir / name).exists()):
                write_atomic(self._run_dir / name, self._read(name))
        complete = sorted(self._complete())
        fitting = [step for step in complete if self._fits(step)]
        for step in fitting or complete:  # where none does, the run says what is wrong
            self._fetch_checkpoint(folder_name(step))
        if not here:
            write_atomic(self._run_dir / CONFIG, self._read(CONFIG))
        return bool(complete) or not here

    def _fits(self, step: int) -> bool:
        """Whether a checkpoint is of the rows that are here: one from which the run has gone back since is not."""
        name, rows = f"{CHECKPOINTS}/{folder_name(step)}/{WRITTEN}", self._run_dir / METRICS
        written = parse_written(self._read(name)) if self._there(name) else None  # older ones do not tell
        if written is None or (rows.is_file() and written.opens(rows)):
            return True
        log.warning("The checkpoint of step %s in %s does not fit %s.", step, self._url, rows)
        return False

    def require_own(self, anew: bool) -> None:
        """Make sure that the copy there, if there is one, is this run's: pushing removes checkpoints.

        Args:
            anew: the run begins anew, whatever its folder holds.

        Raises:
            UserError: it is another run's.
        """
        if self._there(INFO) and (anew or not self._is_own()):
            raise UserError(
                f"{shown(self._url)} holds the copy of another run; give train.mirror another URL, or remove what is "
                "there."
            )

    def _is_own(self) -> bool:
        """Whether the copy there is of the run that is here."""
        try:
            there = json.loads(self._read(INFO))["started"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False
        return is_run(self._run_dir) and read_info(self._run_dir).get("started") == there

    def _fetch_checkpoint(self, name: str) -> None:
        folder = self._run_dir / CHECKPOINTS
        aside, final = folder / f"{UNFINISHED}{name}", folder / name
        if final.exists():
            return
        remove_folder(aside)
        aside.mkdir(parents=True)
        for path in self._system.ls(f"{self._place}/{CHECKPOINTS}/{name}", detail=False):
            self._system.get_file(path, str(aside / _base(path)))
        aside.rename(final)


def _base(path: Any) -> str:
    """A file's own name; no other place may be written to."""
    name = str(path).rstrip("/").rpartition("/")[2]
    if name in ("", ".", "..") or "\\" in name:
        raise UserError(f"The copy of the run has a file of a strange name, {shown(name)}.")
    return name
