"""Writing files so that a crash or a full disk never leaves a half-written one behind, and with clear words.

The one way to write: whatever the package leaves on a disk goes through here, shards of tokens and tensors aside.
"""

import contextlib
import errno
import json
import lzma
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from widestream.errors import UserError, shown

LARGEST_JSON = 64 << 20
"""Bytes of a JSON file: as Python's objects they take up to 25 times the room."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk without room."""
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What it says of a place that may not be written to."""
IMPOSSIBLE = (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""What it says of a path on which nothing can lie: below a file, with too long a name, through a circle of links."""


def cache_folder() -> Path:
    """Where what can be made again is kept: compiled kernels, what is known of data that were read through.

    $WIDESTREAM_CACHE, else $XDG_CACHE_HOME/widestream, else ~/.cache/widestream. It need not exist.
    """
    own, shared = os.environ.get("WIDESTREAM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    return (Path(shared) if shared else Path.home() / ".cache") / "widestream"


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it, if there is one; of a link to a folder, or of a file, just that."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` aside, flush it to disk and rename it over `path`: a reader sees the old or the new, whole.

    Several processes may write the same file: each has a name of its own aside (`leftover` knows them).
    """
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
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


def leftover(path: Path, name: str) -> bool:
    """Whether a file is what a process left that was killed while it wrote the file `name`."""
    return path.name.startswith(f"{name}.") and path.suffix == ".tmp"


def make_folder(folder: Path, final: Path | None = None) -> None:
    """Make a folder, and those around it, where they are not there yet.

    Args:
        folder: the folder.
        final: what it will be called in the end, for the message.

    Raises:
        UserError: it cannot lie there: a file is in the way, its name is too long, the system has no folders there.
        OSError: the disk is full or may not be written to; see `disk_errors`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (*FULL, *FORBIDDEN):
            raise
        raise UserError(
            f"The folder {shown(str(final or folder), 300)} cannot be made ({error.strerror}); name another one."
        ) from error


@contextlib.contextmanager
def disk_errors(folder: Path, advice: str) -> Iterator[None]:
    """Turn what is wrong with a disk or a path on it into a `UserError` that ends with `advice`.

    That is a full disk, an exhausted quota, a missing right to write, and a path on which nothing can lie.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, place = _cause(error)
        if number in FULL:
            raise UserError(f"No space left on the disk of {folder}: free some, then {advice}.") from error
        if number in FORBIDDEN:
            raise UserError(
                f"No permission to write {place or folder}: get it or choose another place, then {advice}."
            ) from error
        if number in IMPOSSIBLE:
            raise UserError(
                f"{shown(str(place or folder), 300)} is no place for a file ({os.strerror(number)}): choose another, "
                f"then {advice}."
            ) from error
        raise


def _cause(error: Exception) -> tuple[int | None, Any]:
    """The system's number of an error, and the file; safetensors tells the number in words."""
    if isinstance(error, OSError):
        return error.errno, error.filename
    found = re.search(r"os error (\d+)", str(error))
    return (int(found[1]) if found else None), None


def write_text(path: Path, content: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        UserError: The folder does not exist, cannot be written to or is full; the path is a folder.
    """
    write_bytes(path, content.encode("utf-8"))


def write_page(path: Path, content: str) -> None:
    """Write a page or a picture, as `write_text`, over an older one at most.

    Raises:
        UserError: as `write_text`, or a file of another kind lies there.
    """
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(64).lstrip()
        if start and not start.startswith(b"<"):
            raise UserError(f"{path} is no page and no picture, and stays as it is; give the name of another file.")
    write_text(path, content)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a value as JSON, compressed if `path` ends in .xz; whole or not at all.

    Args:
        path: the file.
        value: anything JSON can hold, finite numbers only.
        indent: spaces a level, for people to read; None: as short as can be.

    Raises:
        UserError: as `write_text`.
    """
    separators = (",", ":") if indent is None else None
    content = (json.dumps(value, indent=indent, separators=separators, allow_nan=False) + "\n").encode("utf-8")
    write_bytes(path, lzma.compress(content, preset=9) if path.suffix == ".xz" else content)


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        UserError: it is missing, damaged, or larger than `LARGEST_JSON`.
    """
    if os.path.lexists(path) and not path.is_file():  # opening a pipe would wait for ever
        raise UserError(f"{path} is no file; give the path of a record.")
    try:
        return json.loads(read_bounded(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of a record.") from None
    except UserError:
        raise
    except (OSError, ValueError, RecursionError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read as JSON; remove it, or measure again.") from error


def read_bounded(path: Path, most: int = LARGEST_JSON) -> bytes:
    """All of a file that is small where nobody altered it; unpacked if its name ends in .xz.

    Args:
        path: the file.
        most: bytes that it may hold.

    Raises:
        UserError: it holds more.
        OSError, EOFError, lzma.LZMAError: it cannot be read.
    """
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
        content = bytearray()
        while piece := file.read(1 << 20):
            content += piece
            if len(content) > most:
                raise UserError(f"{path} holds more than {most >> 20} MB, which no such file does; move it away.")
    return bytes(content)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: as `write_text`.
    """
    if not path.parent.is_dir():
        raise UserError(f"The folder {path.parent} does not exist; make it first, or write {path.name} elsewhere.")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file in it, such as {path / 'report.html'}.")
    with disk_errors(path.parent, f"write {path.name} again or elsewhere"):
        write_atomic(path, content)
