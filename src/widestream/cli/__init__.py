"""The `widestream` command: one verb per task. A verb parses arguments and calls one function of the library."""

import contextlib
import errno
import io
import os
import sys
from typing import NoReturn

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What a full or a read-only disk says; all else, but of impossible paths, is a fault of ours."""


def main() -> None:
    """Run the command line. What a user can mend is one sentence on stderr and exit code 2."""
    from widestream.cli.app import build_app
    from widestream.errors import UserError, shown
    from widestream.files import IMPOSSIBLE

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            build_app()()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except UserError as error:
        words = "\n".join(shown(line, sys.maxsize) for line in str(error).split("\n"))  # of which no terminal obeys any
        _refuse(words)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if error.errno not in (*UNWRITABLE, *IMPOSSIBLE):
            raise
        _refuse(shown(_impossible(error) if error.errno in IMPOSSIBLE else _unwritable(error), sys.maxsize))
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:  # which typer makes of most interruptions
            raise
        print("widestream: interrupted; run the same command again to go on.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _refuse(words: str) -> NoReturn:
    """Say it and end with exit code 2, also where nobody can be told."""
    with contextlib.suppress(OSError):
        print(f"widestream: {words}", file=sys.stderr, flush=True)
    sys.exit(2)


def _impossible(error: OSError) -> str:
    """What to say of a path that nothing can have."""
    return f"{error.filename or 'What was given'} is no path of a file or folder ({error.strerror}); give another one."


def _unwritable(error: OSError) -> str:
    """What to say of a disk that is full or may not be written to."""
    try:
        sys.stdout.flush()
    except OSError:  # what is left of the output would fail once more as Python ends
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 (a number is wanted, not a path)
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    what = error.filename or "The output"
    return f"{what} cannot be written ({error.strerror}); free some space, or get the right to, or name another place."
