"""Writing files so that a crash or a full disk never leaves a half-written one behind."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from widestream.errors import UserError


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` aside, flush it to disk and rename it over `path`: a reader sees the old or the new, whole."""
    aside = path.with_name(path.name + ".tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def disk_errors(folder: Path, advice: str) -> Iterator[None]:
    """Turn a full disk, an exhausted quota or a missing right to write into a `UserError` that ends with `advice`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"No space left on the disk of {folder}: free some, then {advice}.") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"No permission to write {error.filename or folder}: get it or choose another place, then {advice}."
            ) from error
        raise
