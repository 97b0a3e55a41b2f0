"""The page that says which commands and code of the pages are run by tests, and which are not and why."""

import itertools

from page_commands import NOT_OURS, RUN_BY_ITS_OWN_TEST, blocks, commands, pages

OPENING = """# What of these pages is tested

Every command and every piece of Python code on these pages and in the README is run by a test, in the order of the page and with fewer steps where it
would take long, except for those below. These are parsed: the verb, its arguments and options exist, and so do recipe and settings that
they name. Commands in sentences are parsed too. This page is made from the pages themselves when the site is built.
"""


def tested_page() -> str:
    """The page."""
    rows = [(command.place, command.shown, command.only_parsed) for command in _not_run()]
    programs = ", ".join(f"`{name}` ({reason})" for name, reason in NOT_OURS.items())
    elsewhere = "".join(f"* `{page}`: by `{test}`\n" for page, test in RUN_BY_ITS_OWN_TEST.items())
    parts = [OPENING, f"Never run here: {programs}.\n", f"Python code with a test of its own:\n\n{elsewhere}"]
    for page, of_page in itertools.groupby(rows, key=lambda row: row[0].partition(":")[0]):
        lines = [f"| `{shown.replace('|', chr(92) + '|')}` | {reason} |" for _, shown, reason in of_page]
        parts.append("\n".join([f"## {page}\n", "| command | not run, because |", "|---|---|", *lines, ""]))
    return "\n".join(parts)


def _not_run() -> list:
    shell = [block for page in pages() for block in blocks(page) if block.language in ("sh", "console")]
    found = [command for block in shell for command in commands(block)]
    return [command for command in found if command.only_parsed and command.words[0] not in NOT_OURS]
