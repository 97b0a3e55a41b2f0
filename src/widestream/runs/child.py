"""A `widestream` command that ends with the process that started it: `python -m widestream.runs.child ARGUMENT...`.

Its standard input is a pipe whose other end that process holds and never writes to. The pipe ends when the process
does, also where that was killed.
"""

import os
import runpy
import signal
import threading


def end_with_parent() -> None:
    """Wait for the end of standard input, then end this process."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    runpy.run_module("widestream", run_name="__main__", alter_sys=True)
