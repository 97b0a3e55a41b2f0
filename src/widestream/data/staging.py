"""The folder in which data are prepared, beside the one in which they will appear.

`OUT.preparing` holds the shards and progress.json, a record of how far they are; who works on it holds the lock
`OUT.preparing.lock`. When everything is there, it gets its manifest and is renamed to OUT. So OUT is complete or absent
at any moment, and a killed process loses only what it did since the last record.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from widestream.data.manifest import MANIFEST, Manifest, read_manifest
from widestream.data.shards import SplitState
from widestream.data.sources import SPLITS, Position
from widestream.data.tokenizer_base import TOKENIZER_FILE
from widestream.errors import UserError
from widestream.files import leftover, sync_folder, write_atomic
from widestream.recipe.build import build

_PROGRESS = "progress.json"
_PLAN = ("tokenizer", "dtype", "settings", "sources")
_OWN_FILE = re.compile(r"(progress|manifest|tokenizer)\.json(\.tmp)?|[a-z]+_\d{5,}\.(bin|idx)")


def plan_of(manifest: Manifest) -> dict[str, Any]:
    """What determines the content of a prepared folder, as JSON."""
    raw = json.loads(manifest.to_json())
    return {key: raw[key] for key in _PLAN}


def check_plan(plan: dict[str, Any], found: dict[str, Any], folder: Path, state: str) -> None:
    """Refuse to mix two preparations.

    Raises:
        UserError: `found`, read from `folder`, is not `plan`; the message names what differs.
    """
    different = [key for key in plan if key in found and plan[key] != found[key]]
    if different:
        raise UserError(
            f"{folder} is {state} with different {' and '.join(different)}: "
            "give another --out, or --overwrite to throw it away and start again."
        )


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a preparation is. All of it is on disk; what lies beyond is done again."""

    position: Position = field(default_factory=Position)
    """The next document."""
    consumed: int = 0
    """Bytes of the sources read, for the progress bar."""
    empty_documents: int = 0
    """Documents without text so far."""
    splits: dict[str, SplitState] = field(default_factory=lambda: {split: SplitState() for split in SPLITS})
    """State of the shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    plan: dict[str, Any]
    progress: Progress


class Staging:
    """The folder `OUT.preparing`, locked against a second process.

    Attributes:
        folder: its path.
        plan: what is being prepared.
    """

    def __init__(self, out: Path, plan: dict[str, Any]):
        self.folder = out.with_name(out.name + ".preparing")
        self.plan = plan
        self._out = out
        self._old = out.with_name(f".{out.name}.replaced-by-widestream")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if need be and hold it.

        Raises:
            UserError: another process holds it.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        path = self.folder.with_name(self.folder.name + ".lock")
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"Another process is preparing {self._out}: wait for it, or end it.") from None
        try:
            self.folder.mkdir(exist_ok=True)
            yield
        finally:
            # While it is held: a process that has opened it by now is refused, and a later one makes a new file.
            path.unlink(missing_ok=True)
            lock.release()

    def clear(self) -> None:
        """Remove what was prepared so far; the folder itself stays."""
        foreign = [path for path in self.folder.iterdir() if not _OWN_FILE.fullmatch(path.name)]
        if foreign:
            raise UserError(f"{foreign[0]} is not from widestream: move it, or give another --out.")
        for path in self.folder.iterdir():
            path.unlink()

    @property
    def complete(self) -> bool:
        """Whether everything is there and only the renaming was interrupted."""
        return (self.folder / MANIFEST).is_file()

    @property
    def recorded(self) -> bool:
        """Whether there is anything to go on from."""
        return (self.folder / _PROGRESS).is_file()

    def load(self, overwrite: bool) -> Progress:
        """The recorded progress, or that of a fresh start.

        Args:
            overwrite: throw away what belongs to a different plan instead of refusing.

        Raises:
            UserError: another plan is half done here, or the record is damaged.
        """
        try:
            if self.complete:
                check_plan(self.plan, plan_of(read_manifest(self.folder)), self.folder, "prepared")
            if self.recorded:
                record = self._read()
                check_plan(self.plan, record.plan, self.folder, "half prepared")
                return record.progress
        except UserError:
            if not overwrite:
                raise
        self.clear()
        return Progress()

    def _read(self) -> _Record:
        path = self.folder / _PROGRESS
        try:
            return build(_Record, json.loads(path.read_text(encoding="utf-8")), "", "record")
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): start again with --overwrite.") from error

    def save(self, progress: Progress) -> None:
        """Record progress. The shards must have been flushed."""
        record = asdict(_Record(plan=self.plan, progress=progress))
        write_atomic(self.folder / _PROGRESS, json.dumps(record, indent=2).encode())

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest and rename the folder to OUT, in the place of what may be there."""
        sync_folder(self.folder)
        write_atomic(self.folder / MANIFEST, manifest.to_json().encode())
        self.publish()

    def publish(self) -> None:
        """The last steps of `finish`; they can be repeated if they were interrupted."""
        (self.folder / _PROGRESS).unlink(missing_ok=True)
        for path in [path for path in self.folder.iterdir() if leftover(path, _PROGRESS)]:
            path.unlink()
        if self._out.is_dir():
            shutil.rmtree(self._old, ignore_errors=True)
            self._out.rename(self._old)
        self.folder.rename(self._out)
        sync_folder(self._out.parent)
        shutil.rmtree(self._old, ignore_errors=True)


def check_out(out: Path) -> None:
    """Make sure that replacing OUT would remove nothing but prepared data.

    Raises:
        UserError: OUT is a file, or holds something else.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file: give another --out.")
    if out.is_symlink() or out.is_mount():
        raise UserError(f"{out} is a link or a mount point, which cannot be renamed: give a folder inside it as --out.")
    names = {path.name for path in out.iterdir()}
    if not names:
        return
    if MANIFEST not in names:
        raise UserError(f"{out} holds files, but no prepared data: give another --out.")
    known = {MANIFEST, TOKENIZER_FILE}
    for split in read_manifest(out).splits.values():
        known |= {shard.file for shard in split.shards} | {shard.index_file for shard in split.shards}
    if foreign := sorted(names - known):
        raise UserError(f"{out} holds {foreign[0]}, which is no prepared data: move it, or give another --out.")
