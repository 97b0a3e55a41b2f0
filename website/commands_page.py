"""Reference of the commands, from the help that the command line gives."""

from typing import Any

import typer.main

from widestream.cli.app import build_app

OPENING = """# Commands

What `widestream COMMAND --help` says. This page is made from the command line itself when the site is built.
"""


def commands_page() -> str:
    """The page: a section for every command."""
    return "\n".join([OPENING, *_sections(typer.main.get_command(build_app()), "widestream")])


def _sections(command: Any, name: str) -> list[str]:
    if hasattr(command, "commands"):
        return [section for word, inner in command.commands.items() for section in _sections(inner, f"{name} {word}")]
    context = command.make_context(name, [], resilient_parsing=True)
    rows = [record for param in command.params if (record := _row(param, context))]
    table = ["| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows), ""]
    return [f"## `{name}`\n\n{(command.help or '').strip()}\n", *(table if rows else [])]


def _row(param: Any, context: Any) -> tuple[str, str] | None:
    """An argument or an option, and what it is for."""
    if param.param_type_name == "argument":
        name = param.metavar or param.name.upper()
        return f"`{name}`" + " (may be left out)" * (not param.required), _cell(getattr(param, "help", None) or "")
    record = param.get_help_record(context)
    return record and ("`" + record[0].replace("|", "\\|") + "`", _cell(record[1]))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
