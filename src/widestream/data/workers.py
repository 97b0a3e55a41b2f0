"""Worker processes that do not run the caller's program again.

The standard library's fresh ("spawn") processes import the main module of their parent: a script without
`if __name__ == "__main__"` starts its work over in each of them, and one read from standard input cannot be imported.
Forked ones can deadlock where threads run (tokenizers, torch). So a worker here is a new interpreter, spoken to over
its standard input and output.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from widestream.errors import UserError

_START = "import sys; sys.path[:] = sys.argv[1:]; from widestream.data.workers import serve; serve()"


class _Worker:
    """One process; it answers one call at a time."""

    def __init__(self, function: bytes):
        command = [sys.executable, "-c", _START, *map(str, sys.path)]
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}  # the processes are the parallelism
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self._unsent = function

    def call(self, argument: Any) -> Any:
        """The function's result, or what it raised.

        Raises:
            UserError: the process died.
        """
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None
        assert replies is not None
        try:
            requests.write(self._unsent + pickle.dumps(argument))
            requests.flush()
            self._unsent = b""
            result, error = pickle.load(replies)
        except (EOFError, OSError, pickle.UnpicklingError) as failure:
            raise self._died() from failure
        if error is not None:
            raise error
        return result

    def _died(self) -> UserError:
        if self._process.wait() < 0:
            return UserError(
                "A worker process was killed, most likely for want of memory: run the same command again with fewer "
                "--workers; it goes on from where it stopped."
            )
        return UserError(
            "A worker process failed, its error stands above: mend the cause, or run the same command again with "
            "--workers 1; it goes on from where it stopped."
        )

    def kill(self) -> None:
        """End the process; a call that waits for it fails."""
        self._process.kill()

    def close(self) -> None:
        """Close the pipes of a process that was killed."""
        self._process.communicate()


class WorkerPool:
    """Calls one function in several processes. To be used in a `with` statement, which ends them."""

    def __init__(self, function: Callable[[Any], Any], workers: int):
        """Start the processes, without waiting for them.

        Args:
            function: what to call; pickled, so it has to be found in a module.
            workers: number of processes.
        """
        pickled = pickle.dumps(function)
        self._workers = [_Worker(pickled) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers)

    def submit(self, argument: Any) -> "Future[Any]":
        """Call the function with `argument` in the next process that is free."""
        return self._threads.submit(self._call, argument)

    def _call(self, argument: Any) -> Any:
        worker = self._idle.get()
        try:
            return worker.call(argument)
        finally:
            self._idle.put(worker)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown()
        for worker in self._workers:
            worker.close()


def serve() -> None:
    """What a worker does: read the function, then arguments until the parent is gone; answer (result, error)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # and if it was killed, nobody wants to hear of it
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not print among the replies
    with contextlib.suppress(EOFError):  # the parent is gone
        function = pickle.load(requests)
        while True:
            argument = pickle.load(requests)
            try:
                reply = function(argument), None
            except Exception as error:
                reply = None, error
            pickle.dump(reply, replies)
            replies.flush()
