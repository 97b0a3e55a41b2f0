"""`python -m widestream` is the `widestream` command."""

from widestream.cli import main

main()
