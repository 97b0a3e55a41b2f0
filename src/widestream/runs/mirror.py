"""A copy of a run behind a URL (s3://bucket/run, gs://..., whatever fsspec opens), for machines that are taken away.

Checkpoints are copied once they are complete, `complete.json` last, so that what is there by that name is whole. A run
folder that is not there is fetched from the copy, and the run goes on from it.
"""

import contextlib
import json
import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from widestream.data.names import shown
from widestream.data.remote import file_system, url_of
from widestream.data.tokenizer import TOKENIZER_FILE
from widestream.errors import UserError
from widestream.files import write_atomic
from widestream.runs.checkpoint import COMPLETE, UNFINISHED, folder_name
from widestream.runs.folder import CHECKPOINTS, CONFIG, DONE, INFO, METRICS, is_run, list_checkpoints, read_info

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
        here = dict(list_checkpoints(self._run_dir))
        for step in sorted(here.keys() - self._complete()):
            self._copy_checkpoint(here[step])
        for name in (*_SMALL, DONE):
            if (self._run_dir / name).is_file():
                self._put(self._run_dir / name, name)
        for step in self._steps() - here.keys():  # those that the run has removed, half-copied ones among them
            self._system.rm(f"{self._place}/{CHECKPOINTS}/{folder_name(step)}", recursive=True)

    def _copy_checkpoint(self, folder: Path) -> None:
        with contextlib.suppress(FileNotFoundError):  # it was removed for a newer one
            files = sorted(folder.iterdir(), key=lambda path: path.name == COMPLETE)
            for path in files:
                self._put(path, f"{CHECKPOINTS}/{folder.name}/{path.name}")

    def _put(self, path: Path, name: str) -> None:
        target = f"{self._place}/{name}"
        self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._system.put_file(str(path), target)

    def _steps(self) -> set[int]:
        """Steps of the checkpoints that are there, whole or not."""
        place = f"{self._place}/{CHECKPOINTS}"
        if not self._system.exists(place):
            return set()
        names = [str(path).rstrip("/").rpartition("/")[2] for path in self._system.ls(place, detail=False)]
        return {int(name[5:]) for name in names if name.startswith("step_") and name[5:].isdecimal()}

    def _complete(self) -> set[int]:
        """Those that are whole."""
        place = f"{self._place}/{CHECKPOINTS}"
        return {step for step in self._steps() if self._system.exists(f"{place}/{folder_name(step)}/{COMPLETE}")}

    def restore(self) -> bool:
        """Fetch the run, unless its folder is here or nothing is there.

        Returns:
            Whether it was fetched.

        Raises:
            UserError: it cannot be read.
        """
        try:
            if is_run(self._run_dir) or not self._system.exists(f"{self._place}/{CONFIG}"):
                return False
            steps = sorted(self._complete())[-2:]  # should the newest be damaged, there is another
            for step in steps:
                self._fetch_checkpoint(folder_name(step))
            for name in _SMALL:
                if self._system.exists(f"{self._place}/{name}"):
                    write_atomic(self._run_dir / name, self._system.cat_file(f"{self._place}/{name}"))
        except UserError:
            raise
        except Exception as error:  # every kind of storage has errors of its own
            raise UserError(
                f"The run cannot be fetched from {shown(self._url)} ({type(error).__name__}: "
                f"{shown(str(error)[:200])}): check the network and your rights there, or leave out train.mirror."
            ) from error
        return True

    def require_own(self, anew: bool) -> None:
        """Make sure that the copy there, if there is one, is this run's: pushing removes checkpoints.

        Args:
            anew: the run begins anew, whatever its folder holds.

        Raises:
            UserError: it is another run's.
        """
        place = f"{self._place}/{INFO}"
        if not self._system.exists(place):
            return
        try:
            there = json.loads(self._system.cat_file(place))["started"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            there = None
        here = read_info(self._run_dir).get("started") if is_run(self._run_dir) and not anew else None
        if here is None or here != there:
            raise UserError(
                f"{shown(self._url)} holds the copy of another run; give train.mirror another URL, or remove what is "
                "there."
            )

    def _fetch_checkpoint(self, name: str) -> None:
        folder = self._run_dir / CHECKPOINTS
        aside, final = folder / f"{UNFINISHED}{name}", folder / name
        if final.exists():
            return
        shutil.rmtree(aside, ignore_errors=True)
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
