"""What the harness and its libraries say while they work: kept off the standard output, and without bars in files."""

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TextIO


class WithoutBars(io.TextIOBase):
    """A stream of text less what tqdm draws: pieces that begin with a carriage return, and the line end behind them."""

    def __init__(self, behind: TextIO):
        self._behind, self._in_bar = behind, False

    def write(self, text: str) -> int:
        """Pass a piece on, or swallow it."""
        bar = text.startswith("\r") or (self._in_bar and text == "\n")
        if not bar and text:
            self._behind.write(text)
        self._in_bar = text.startswith("\r") or (self._in_bar and not text)
        return len(text)

    def flush(self) -> None:
        """Of what was passed on."""
        self._behind.flush()


@contextlib.contextmanager
def quiet_without_terminal() -> Iterator[None]:
    """What is printed inside goes to the standard error, and bars are drawn only where that is a terminal."""
    shown = sys.stderr if sys.stderr.isatty() else WithoutBars(sys.stderr)
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):  # pyright: ignore[reportArgumentType]
        yield
