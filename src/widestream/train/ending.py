"""Being told to end: SIGTERM lets a training save first, and a terminal that goes away ends nothing."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that was told to end and saved where it stood, as shells have it: 143."""


class Ending:
    """What this process was told."""

    def __init__(self):
        self.told = False
        """Whether it is to end after the step that it is at."""
        self.may_wait = False
        """Whether there is a step to be finished and saved; before that SIGTERM ends the process at once."""

    def tell(self, number: int, _: FrameType | None) -> None:
        """A SIGTERM has come. A second one ends the process at once."""
        self.told = True
        signal.signal(number, signal.SIG_DFL)
        if not self.may_wait:
            sys.exit(TERMINATED)


@contextlib.contextmanager
def listening() -> Iterator[Ending]:
    """Take SIGTERM as a wish, and pass over SIGHUP; in the main thread, for no other can."""
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, ending.tell),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    }
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
