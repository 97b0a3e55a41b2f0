"""What a person sees while runs train."""

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from tqdm import tqdm

PLAIN_EVERY_S = 30.0
"""Seconds between lines where the output is no terminal."""


P = ParamSpec("P")


def _outlives_terminal(
    method: Callable[Concatenate["Progress", P], None],
) -> Callable[Concatenate["Progress", P], None]:
    """Say nothing more once nobody can read it: a terminal that goes away ends no work."""

    @functools.wraps(method)
    def called(self: "Progress", *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except OSError:
            self.gone()

    return called


class Progress:
    """A progress bar on standard error; where that is no terminal, a plain line now and then.

    Standard error may go away (a terminal is closed, a disk is full): what is said then is lost, and work goes on.

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

    @_outlives_terminal
    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def gone(self) -> None:
        """Standard error cannot be written: it is nothing from now on."""
        self._quiet, self._bar = True, None
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 (it stays open)

    @_outlives_terminal
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

    @_outlives_terminal
    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if not self._quiet:
            tqdm.write(text, file=sys.stderr)
