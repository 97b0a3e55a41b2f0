"""What a person sees while runs train."""

import sys
import time

from tqdm import tqdm

PLAIN_EVERY_S = 30.0
"""Seconds between lines where the output is no terminal."""


class Progress:
    """A progress bar on standard error; where that is no terminal, a plain line now and then.

    Args:
        name: of what is done.
        done: optimizer steps done already.
        total: optimizer steps in all.
        quiet: show nothing (all processes of a run but the main one).
    """

    def __init__(self, name: str, done: int, total: int, quiet: bool = False):
        self._first, self._total, self._quiet = done, total, quiet
        self._start = self._last_line = time.monotonic()
        plain = quiet or not sys.stderr.isatty()
        self._bar = None if plain else tqdm(desc=name, initial=done, total=total, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, line: str, note: str = "") -> None:
        """So many steps are done: moves the bar, with a note beside it, or prints the line with the time left."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
        elif done > self._first and now - self._last_line > PLAIN_EVERY_S:
            self._last_line = now
            left = (now - self._start) / (done - self._first) * (self._total - done)
            self.say(f"{line}, about {left / 60:.0f} min left")

    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if not self._quiet:
            tqdm.write(text, file=sys.stderr)
