"""Claims: which of several processes, here or on other machines that share the folder, carries out a run.

A claim is a small file beside the run folder. Its owner touches it while it works; one that nobody has touched for
`STALE_S` belongs to a process that is gone, and may be taken over. Taking is done under a lock, one process at a time.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

STALE_S = 60.0
"""Seconds without a touch after which a claim counts as left behind."""


def take(folder: Path) -> bool:
    """Claim a run; False where another process has it."""
    path = _path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        if path.exists() and not _stale(path):
            return False
        path.write_text(json.dumps(_me()))
    return True


def touch(folder: Path) -> None:
    """Say that the run is still being worked on."""
    path = _path(folder)
    if _owner(path) == _me():
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)


def drop(folder: Path) -> None:
    """Give a claim back; another process's is left alone."""
    path = _path(folder)
    if _owner(path) == _me():
        path.unlink(missing_ok=True)


def _path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.claim")


def _me() -> dict[str, str | int]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the lock ends with its process."""
    with (folder / "claims.lock").open("ab") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        yield


def _owner(path: Path) -> dict[str, str | int] | None:
    """Who has a claim; None where it is gone, or its writer was killed while it wrote."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _stale(path: Path) -> bool:
    owner = _owner(path)
    if owner is not None and owner.get("host") == socket.gethostname() and not _alive(int(owner.get("pid", 0))):
        return True
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > STALE_S
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
