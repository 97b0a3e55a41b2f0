"""Being told to end: SIGTERM lets a training save first, and so does the end of its launcher; a terminal that goes away
ends nothing.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from widestream.errors import TERMINATED

LAUNCHED = "TORCHELASTIC_RUN_ID"
"""What torchrun leaves in the environment of processes that it looks after."""


class Ending:
    """What this process was told."""

    def __init__(self):
        self._told = False
        self.may_wait = False
        """Whether there is a step to be finished and saved; before that SIGTERM ends the process at once."""
        self._launcher = os.getppid() if LAUNCHED in os.environ else None

    @property
    def told(self) -> bool:
        """Whether it is to end after the step that it is at: by a signal, or because its launcher is gone."""
        return self._told or (self._launcher is not None and os.getppid() != self._launcher)

    def tell(self, number: int, _: FrameType | None) -> None:
        """A SIGTERM has come. A second one ends the process at once."""
        self._told = True
        signal.signal(number, signal.SIG_DFL)
        if not self.may_wait:
            sys.exit(TERMINATED)


@contextlib.contextmanager
def listening() -> Iterator[Ending]:
    """Take SIGTERM as a wish, and pass over SIGHUP; in the main thread, for no other can.

    A wish that nothing within heeded (a training was at its last step, or its last evaluation) ends the process behind
    it: a program that trains one run after another would begin the next.
    """
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
    if ending.told:
        sys.exit(TERMINATED)
