"""Writing what people asked for, with clear words when it cannot be done."""

from pathlib import Path

from widestream.data.files import disk_errors, write_atomic
from widestream.errors import UserError


def write_text(path: Path, content: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        UserError: The folder does not exist, cannot be written to or is full; the path is a folder.
    """
    if not path.parent.is_dir():
        raise UserError(f"The folder {path.parent} does not exist; make it first, or write {path.name} elsewhere.")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file in it, such as {path / 'report.html'}.")
    with disk_errors(path.parent, f"write {path.name} again or elsewhere"):
        write_atomic(path, content.encode("utf-8"))
