"""Writing what people asked for, with clear words when it cannot be done; and measurements' records read again."""

import json
import lzma
from pathlib import Path
from typing import Any

from widestream.errors import UserError
from widestream.files import disk_errors, write_atomic


def write_text(path: Path, content: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        UserError: The folder does not exist, cannot be written to or is full; the path is a folder.
    """
    _write(path, content.encode("utf-8"))


def write_record(path: Path, record: Any) -> None:
    """Write a record as JSON, compressed if `path` ends in .xz; whole or not at all.

    Raises:
        UserError: as `write_text`.
    """
    content = (json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n").encode("utf-8")
    _write(path, lzma.compress(content, preset=9) if path.suffix == ".xz" else content)


def read_record(path: Path) -> Any:
    """What `write_record` wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        content = path.read_bytes()
        return json.loads(lzma.decompress(content) if path.suffix == ".xz" else content)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of a record.") from None
    except (ValueError, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read as JSON; remove it, or measure again.") from error


def _write(path: Path, content: bytes) -> None:
    if not path.parent.is_dir():
        raise UserError(f"The folder {path.parent} does not exist; make it first, or write {path.name} elsewhere.")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file in it, such as {path / 'report.html'}.")
    with disk_errors(path.parent, f"write {path.name} again or elsewhere"):
        write_atomic(path, content)
