"""`python -m widestream.cli` is the `widestream` command."""

from widestream.cli import main

main()
