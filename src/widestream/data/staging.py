"""The folder in which data are prepared, beside the one in which they will appear.

`OUT.preparing` holds the shards and progress.json, a record of how far they are; who works on it holds the lock
`OUT.preparing.lock`. When everything is there, it gets its manifest and is renamed to OUT. So OUT is complete or absent
at any moment, and a killed process loses only what it did since the last record.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from widestream.data.manifest import MANIFEST, Manifest, Skipped, SplitInfo, read_manifest
from widestream.data.names import shown
from widestream.data.options import DEFAULTS
from widestream.data.shards import SplitState
from widestream.data.sources import SPLITS, Document, Position
from widestream.data.tokenizer_base import TOKENIZER_FILE
from widestream.errors import UserError
from widestream.files import leftover, make_folder, sync_folder, write_atomic
from widestream.recipe.build import build

_PROGRESS = "progress.json"
_PLAN = ("tokenizer", "dtype", "settings", "sources")
_OWN_FILE = re.compile(r"(progress|manifest|tokenizer)\.json(\.tmp)?|[a-z]+_\d{5,}\.(bin|idx)")


def plan_of(manifest: Manifest) -> dict[str, Any]:
    """What determines the content of a prepared folder, as JSON."""
    raw = json.loads(manifest.to_json())
    # Options that came later are not in an old manifest: it is as if they had their defaults.
    return {key: raw[key] for key in _PLAN} | {"settings": asdict(DEFAULTS) | raw["settings"]}


def check_plan(
    plan: dict[str, Any], found: dict[str, Any], folder: Path, state: str, forgiven: Sequence[str] = ()
) -> None:
    """Refuse to mix two preparations.

    Args:
        plan: what is asked for.
        found: read from `folder`.
        folder: for the message.
        state: what it is, for the message.
        forgiven: options that made no difference to what is in the folder.

    Raises:
        UserError: the two differ; the message names in what.
    """
    plan, found = _without(plan, forgiven), _without(found, forgiven)
    different = [key for key in plan if plan[key] != found.get(key)]
    if different:
        raise UserError(
            f"{shown(folder)} is {state} with different {' and '.join(different)}: "
            "give another --out, or --overwrite to throw it away and start again."
        )


def _without(plan: dict[str, Any], options: Sequence[str]) -> dict[str, Any]:
    return plan | {"settings": {key: value for key, value in plan["settings"].items() if key not in options}}


def made_no_difference(skipped: Skipped, splits: Iterable[SplitInfo | SplitState]) -> tuple[str, ...]:
    """The forgiving options that had nothing to forgive: data made with others would be the same."""
    options = () if skipped.records else ("skip_bad", "max_record")
    return options if any(split.lost_characters for split in splits) else (*options, "allow_lost_text")


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a preparation is. All of it is on disk; what lies beyond is done again."""

    position: Position = field(default_factory=Position)
    """The next document."""
    read: int = 0
    """Documents read so far, empty ones and bad records among them."""
    chain: int = 0
    """Hash over these, their splits and their order, see `link`."""
    consumed: int = 0
    """Bytes of the sources read, for the progress bar."""
    empty_documents: int = 0
    """Documents without text so far."""
    skipped: Skipped = field(default_factory=Skipped)
    """Records passed over so far."""
    splits: dict[str, SplitState] = field(default_factory=lambda: {split: SplitState() for split in SPLITS})
    """State of the shards."""


def link(chain: int, document: Document, split: str) -> int:
    """The hash over documents so far and one more, 62 bits."""
    number = document.digest + SPLITS.index(split) + document.bad
    return (chain * 0x9E3779B97F4A7C15 + number + 1) & 0x3FFFFFFFFFFFFFFF


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    plan: dict[str, Any]
    stamp: list[Any]
    progress: Progress


def _digest(record: dict[str, Any]) -> str:
    """Of a record, so that a key that is missing, or another number, is noticed."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


class Staging:
    """The folder `OUT.preparing`, locked against a second process.

    Attributes:
        folder: its path.
        plan: what is being prepared.
        changed: whether files were changed since the progress was recorded that `load` found.
    """

    def __init__(self, out: Path, plan: dict[str, Any], stamp: list[Any]):
        self.folder = out.with_name(out.name + ".preparing")
        self.plan = plan
        self.changed = False
        self._stamp = stamp
        self._out = out
        self._old = out.with_name(f".{out.name}.replaced-by-widestream")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if need be and hold it.

        Raises:
            UserError: another process holds it, or it cannot be made.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{shown(self.folder)} is in the way: move it, or give another --out.")
        make_folder(self.folder.parent)
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

        Which sources there are may have changed; whoever goes on looks whether what was read before is still the same.

        Args:
            overwrite: throw away what belongs to a different plan instead of refusing.

        Raises:
            UserError: another plan is half done here, or the record is damaged.
        """
        try:
            if self.complete:
                self._check_complete()
            if self.recorded:
                record = self._read()
                progress = record.progress
                # Loss is asked about again before anything else is done, so whether it is allowed may change.
                forgiven = made_no_difference(progress.skipped, ())
                plan = self.plan | {"sources": None}
                check_plan(plan, record.plan | {"sources": None}, self.folder, "half prepared", forgiven)
                self.changed = record.stamp != self._stamp
                return progress
        except UserError:
            if not overwrite:
                raise
        self.clear()
        return Progress()

    @property
    def is_as_planned(self) -> bool:
        """Whether what is complete here is what the plan asks for."""
        try:
            self._check_complete()
        except UserError:
            return False
        return True

    def _check_complete(self) -> None:
        manifest = read_manifest(self.folder)
        forgiven = made_no_difference(manifest.skipped, manifest.splits.values())
        check_plan(self.plan, plan_of(manifest), self.folder, "prepared", forgiven)

    def _read(self) -> _Record:
        path = self.folder / _PROGRESS
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(raw, dict) or raw.pop("sha256", None) != _digest(raw):
                raise ValueError("it was altered, or is of another version")
            return build(_Record, raw, "", "record")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{shown(path)} is damaged ({str(error)[:200]}): start again with --overwrite.") from error

    def save(self, progress: Progress) -> None:
        """Record progress. The shards must have been flushed."""
        record = asdict(_Record(plan=self.plan, stamp=self._stamp, progress=progress))
        write_atomic(self.folder / _PROGRESS, json.dumps(record | {"sha256": _digest(record)}, indent=2).encode())

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
