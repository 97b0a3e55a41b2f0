"""`widestream demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path | None, typer.Option(help="Everything is written here. Default: runs/demo.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each model. Default: 2.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each run. Default: the recipes'.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Runs at a time. Default: one a GPU; with none, one a CPU.")
    ] = None,
    prepare_only: Annotated[bool, typer.Option("--prepare-only", help="Stop when the data is prepared.")] = False,
) -> None:
    """Train RMT and transformer side by side on bundled prose and write a report; minutes on two CPU cores.

    It is the study `demo`. Interrupted, the same command goes on where it stopped.
    """
    from widestream.study.demo import prepare_data, run_demo
    from widestream.study.run import StudyOptions

    options = StudyOptions(folder=out, seeds=seeds, steps=steps, workers=workers)
    if prepare_only:
        prepare_data(options)
    else:
        run_demo(options)
