"""What is remembered of shards that were read through: nobody reads trillions of tokens at every start.

A shard whose size, time of change and inode are those that it had when its hash was found to be the manifest's is taken
to be the same. The record lies in the cache folder, not beside the data, which may be read-only; where it cannot be
written, or is damaged, shards are read again. What keeps all three, such as a bit that flips on the disk, is
seen by `widestream data inspect --verify` alone.
"""

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from widestream.errors import UserError
from widestream.files import cache_folder, read_bounded, write_atomic

FRESH_NS = 2_000_000_000
"""A file that changed less than this before it was read is not remembered: the clock may not tell its next change."""

Stamp = list[int]
"""Size, time of change in ns, inode, device."""


class Stamps:
    """What is known of the shards of a data folder.

    Args:
        folder: the data.
        name: tells apart who remembers: processes that verify a share each write files of their own.
    """

    def __init__(self, folder: Path, name: str = ""):
        self.folder = folder
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
        self._path = cache_folder() / "verified" / f"{place}{name}.json"
        self._known = self._read()
        self._new = False

    def holds(self, file: str, sha256: str) -> bool:
        """Whether a file is as it was when it had this hash."""
        stamp = stamp_of(self.folder / file)
        return stamp is not None and self._known.get(file) == [*stamp, sha256]

    def remember(self, file: str, sha256: str, before: Stamp | None) -> None:
        """Take down that a file has this hash, if it did not change while it was read.

        Args:
            file: its name in the folder.
            sha256: what was found.
            before: `stamp_of` it before it was read.
        """
        after = stamp_of(self.folder / file)
        if after is not None and before == after and time.time_ns() - after[1] > FRESH_NS:
            self._known[file], self._new = [*after, sha256], True

    def save(self) -> None:
        """Keep what was taken down; where that is not possible, shards are read again another time."""
        if not self._new:
            return
        with contextlib.suppress(OSError, UserError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(self._known).encode())

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, UserError, ValueError, RecursionError):
            known = json.loads(read_bounded(self._path))
            if isinstance(known, dict):
                return known
        return {}


def stamp_of(path: Path) -> Stamp | None:
    """Of a file; None where it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev]
