"""What a person sees while a run trains."""

import sys
import time

from tqdm import tqdm

PLAIN_EVERY_S = 30.0
"""Seconds between lines where the output is no terminal."""


class TrainingBar:
    """A progress bar on standard error; where that is no terminal, a plain line now and then.

    Args:
        name: of the run.
        done: optimizer steps done already.
        total: optimizer steps of the whole run.
        quiet: show nothing (all processes but the main one).
    """

    def __init__(self, name: str, done: int, total: int, quiet: bool = False):
        self._quiet = quiet
        self._done = self._first = done
        self._total = total
        self._start = self._last_line = time.monotonic()
        plain = quiet or not sys.stderr.isatty()
        self._bar = None if plain else tqdm(desc=name, initial=done, total=total, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, loss: float, tokens_per_s: float) -> None:
        """Another step is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_s:,.0f} tokens/s", refresh=False)
            self._bar.update()
        elif time.monotonic() - self._last_line > PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            left = (self._last_line - self._start) / (self._done - self._first) * (self._total - self._done)
            self.say(
                f"step {self._done}/{self._total}: loss {loss:.3f}, {tokens_per_s:,.0f} tokens/s, "
                f"about {left / 60:.0f} min left"
            )

    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if not self._quiet:
            tqdm.write(text, file=sys.stderr)
