"""Claims: which of several processes, here or on other machines that share the folder, carries out a run.

A claim is a small file beside the run folder. Its owner touches it while it works; one that nobody has touched for
`STALE_S` belongs to a process that is gone, and may be taken over.
"""

import contextlib
import json
import os
import socket
import time
from pathlib import Path

STALE_S = 60.0
"""Seconds without a touch after which a claim counts as left behind."""


def _path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.claim")


def take(folder: Path) -> bool:
    """Claim a run; False where another process has it."""
    path = _path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    if _stale(path):
        # Renaming succeeds for one process only, so that two cannot take over the same claim.
        aside = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
            aside.unlink()
    try:
        with path.open("x") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
    except FileExistsError:
        return False
    return True


def touch(folder: Path) -> None:
    """Say that the run is still being worked on."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(_path(folder))


def drop(folder: Path) -> None:
    """Give a claim back."""
    _path(folder).unlink(missing_ok=True)


def _stale(path: Path) -> bool:
    try:
        age, owner = time.time() - path.stat().st_mtime, json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return False
    return age > STALE_S or (owner["host"] == socket.gethostname() and not _alive(owner["pid"]))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
