"""The typer application: every verb's module adds its commands."""

import importlib

import typer

VERBS = (
    "train",
    "sample",
    "compare",
    "summary",
    "streams",
    "data",
    "bench",
    "demo",
    "zoo",
    "study",
    "tune",
    "mup",
    "paper",
)


def build_app() -> typer.Typer:
    """Gather the verbs. Their modules import nothing heavy until a command runs."""
    app = typer.Typer(
        name="widestream",
        help="Build, train, compare and understand transformer residual streams.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback(invoke_without_command=True)(_options)
    for verb in VERBS:
        importlib.import_module(f"widestream.cli.{verb}").register(app)
    return app


def _options(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from widestream.version import __version__

        print(__version__)
        raise typer.Exit
