"""`widestream demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Everything is written here.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(help="Runs of each model.")] = 2,
    steps: Annotated[int | None, typer.Option(help="Steps of each run. Default: the recipes'.")] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at a time. Default: one a CPU.")] = None,
    prepare_only: Annotated[bool, typer.Option("--prepare-only", help="Stop when the data is prepared.")] = False,
) -> None:
    """Train RMT and transformer side by side on bundled prose and write a report; minutes on two CPU cores.

    Interrupted, the same command goes on where it stopped.
    """
    from widestream.study.demo import DemoOptions, prepare_data, run_demo

    if prepare_only:
        prepare_data(out)
    else:
        run_demo(DemoOptions(folder=out, seeds=seeds, steps=steps, workers=workers))


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("demo")(demo)
