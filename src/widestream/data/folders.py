"""The files below a folder: which are read, in which order, and which are passed over and why."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from widestream.data.names import READ, kind_of, passed_over, shown
from widestream.errors import UserError


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A file or folder that is not read."""

    path: str
    """Where it is."""
    reason: str
    """Why."""


class Walk:
    """Goes through a folder. Links are followed, and what can be reached in several ways is read once.

    Attributes:
        files: what is to be read, sorted by path.
        passed_over: everything else, sorted by path; a folder that is passed over as a whole is one entry.
    """

    def __init__(self, folder: Path):
        """Look at everything below `folder`; nothing is read.

        Raises:
            UserError: a folder cannot be read, a link of a name that is read leads nowhere, or nothing is to be read.
        """
        self.passed_over: list[PassedOver] = []
        self._seen: dict[tuple[int, int], Path] = {}
        found: list[Path] = []
        folders, links = [folder], []
        while folders or links:
            # Links last, so that a folder goes by its own path and not by that of a link to it.
            here = folders.pop() if folders else links.pop()
            if self._is_new(here):
                for path in self._entries(here):
                    if path.is_dir():
                        (links if path.is_symlink() else folders).append(path)
                    elif kind_of(path) is None:
                        self._pass_over(path, "no kind of file that is read")
                    else:
                        found.append(path)
            links.sort(reverse=True)
        found.sort(key=lambda path: path.relative_to(folder).parts)
        self.files = [path for path in found if self._is_readable(path)]
        self.passed_over.sort(key=lambda entry: entry.path)
        if not self.files:
            raise UserError(f"The folder {shown(folder)} holds no file that widestream reads ({READ}).")

    def _entries(self, folder: Path) -> Iterator[Path]:
        """What lies in a folder and is not passed over by its name."""
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            raise UserError(f"Cannot read the folder {shown(folder)} ({error.strerror}): check its rights.") from error
        for path in paths:
            if (reason := passed_over(path.name)) is None:
                yield path
            else:
                self._pass_over(path, reason)

    def _is_readable(self, path: Path) -> bool:
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            target = shown(path.readlink()) if path.is_symlink() else "nothing"
            raise UserError(f"{shown(path)} is a broken link (to {target}): mend or remove it.") from None
        except OSError as error:
            raise UserError(f"Cannot read {shown(path)} ({error.strerror}): check the path.") from error
        if not stat.S_ISREG(mode):
            self._pass_over(path, "no regular file")
            return False
        return self._is_new(path)

    def _is_new(self, path: Path) -> bool:
        """Whether a file or folder was not reached before, by another link or name."""
        status = path.stat()
        first = self._seen.setdefault((status.st_dev, status.st_ino), path)
        if first is not path:
            self._pass_over(path, f"the same as {shown(first)}")
        return first is path

    def _pass_over(self, path: Path, reason: str) -> None:
        self.passed_over.append(PassedOver(shown(path), reason))
