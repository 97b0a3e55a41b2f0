"""The typer application: every command, and where its function stands."""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from widestream.recipe.home import expand_home

COMMANDS = {
    "train": "train:train",
    "eval": "train:evaluate",
    "sample": "train:sample",
    "serve": "serve:serve",
    "compare": "compare:compare",
    "dissect": "dissect:dissect",
    "lens": "lens:lens",
    "summary": "summary:summary",
    "plan": "plan:plan",
    "streams": "summary:streams",
    "demo": "study:demo",
    "zoo": "study:zoo",
    "tune": "mup:tune",
    "import hf": "convert:import_hf",
    "convert": "convert:convert",
    "widen": "convert:widen",
    "data prepare": "data:prepare",
    "data merge": "data:merge",
    "data inspect": "data:inspect",
    "data tasks": "tasks:unpack",
    "data train-tokenizer": "data:train_tokenizer",
    "runs list": "runs:list_",
    "runs tag": "runs:tag",
    "runs remove": "runs:remove",
    "doctor": "doctor:doctor",
    "export hf": "export:hf",
    "bench step": "bench:step",
    "bench memory": "bench:memory",
    "bench decode": "bench:decode",
    "bench kernels": "bench:kernels",
    "bench data": "bench:data",
    "study run": "study:run",
    "study report": "study:report",
    "study pack": "study:pack",
    "study list": "study:list_studies",
    "study moments": "study_moments:moments",
    "mup check": "mup:check",
    "paper errata": "paper:errata",
    "paper resources": "paper:resources",
}
"""Module and function of every command, in the order of the help. The modules import nothing heavy until one runs."""

GROUPS = {
    "import": "Take over models that were trained elsewhere.",
    "data": "Prepare text, join parts, inspect prepared data, train a tokenizer.",
    "runs": "The runs on the disk: list, tag, remove.",
    "export": "Hand a run to other tools: a folder for Hugging Face transformers.",
    "bench": "Measure training step, memory, decoding, kernels and data here.",
    "study": "Questions answered by many runs: seeds, searches, intervals.",
    "mup": "muP: settings that carry over from small models to large ones.",
    "paper": "The RMT paper's arithmetic, computed anew: errata, resources.",
}
"""What the help says of commands that share their first word."""


def build_app() -> typer.Typer:
    """Gather the commands."""
    app = typer.Typer(
        name="widestream",
        help="Build, train, compare and understand transformer residual streams.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=True,
    )
    app.callback(invoke_without_command=True)(_options)
    groups = {"": app}
    for name, sentence in GROUPS.items():
        groups[name] = typer.Typer(no_args_is_help=True, help=sentence)
        groups[name].callback()(lambda: None)  # also a group of one command is a group
        app.add_typer(groups[name], name=name)
    for command, place in COMMANDS.items():
        group, _, name = command.rpartition(" ")
        module, _, function = place.partition(":")
        verb = getattr(importlib.import_module(f"widestream.cli.{module}"), function)
        groups[group].command(name)(_with_home(verb))
    return app


def _with_home(verb: Callable[..., None]) -> Callable[..., None]:
    """The same command with ~ expanded in every path that it is given; a shell leaves it in `--out=~/run`."""

    def expanded(value: Any) -> Any:
        if isinstance(value, list):
            return [expanded(entry) for entry in value]
        return Path(expand_home(value)) if isinstance(value, Path) else value

    @functools.wraps(verb)
    def called(**given: Any) -> None:
        verb(**{name: expanded(value) for name, value in given.items()})

    return called


def _options(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from widestream.version import __version__

        print(__version__)
        raise typer.Exit
