"""The `widestream` command: one verb per task. A verb parses arguments and calls one function of the library."""

import io
import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main() -> None:
    """Run the command line. What a user can mend is one sentence on stderr and exit code 2."""
    from widestream.cli.app import build_app
    from widestream.errors import UserError, shown

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        build_app()()
    except UserError as error:
        words = "\n".join(shown(line, sys.maxsize) for line in str(error).split("\n"))  # of which no terminal obeys any
        print(f"widestream: {words}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:  # which typer makes of most interruptions
            raise
        print("widestream: interrupted; run the same command again to go on.", file=sys.stderr)
        sys.exit(INTERRUPTED)
