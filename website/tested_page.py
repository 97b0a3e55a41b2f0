"""The page that says which commands and code of the pages are run by tests, and which are not and why."""

import shlex

from page_commands import NOT_OURS, ONLY_PARSED, RUN_BY_ITS_OWN_TEST, SHELL, Block, blocks, commands, pages

OPENING = """# What of these pages is tested

Every command and every piece of Python code on these pages and in the README is run by a test, in the order of the
page and with fewer steps where it would take long, except for those below. These are parsed: the verb, its arguments
and options exist, and so do recipe and settings that they name. Commands in sentences are parsed too. This page is
made from the pages themselves when the site is built.
"""


def tested_page() -> str:
    """The page."""
    programs = ", ".join(f"`{name}` ({reason})" for name, reason in NOT_OURS.items())
    elsewhere = "".join(f"* `{page}`: by `{test}`\n" for page, test in RUN_BY_ITS_OWN_TEST.items())
    parts = [OPENING, f"Never run here: {programs}.\n", f"Python code with a test of its own:\n\n{elsewhere}"]
    for page in pages():
        if rows := [row for block in blocks(page) for row in _not_run(block)]:
            lines = [f"| {shown} | {reason} |" for shown, reason in rows]
            parts.append("\n".join([f"## {page}\n", "| what | not run, because |", "|---|---|", *lines, ""]))
    return "\n".join(parts)


def _not_run(block: Block) -> list[tuple[str, str]]:
    """What of a block is parsed only, and why."""
    if block.language == "python":
        reason = block.notes.get("python", "")
        return [(f"code in line {block.line}", reason.removeprefix(ONLY_PARSED))] if reason else []
    found = commands(block) if block.language in SHELL else []
    return [
        (f"`{shlex.join(command.words)}`".replace("|", "\\|"), command.only_parsed)
        for command in found
        if command.only_parsed and command.words[0] not in NOT_OURS
    ]
