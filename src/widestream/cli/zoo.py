"""`widestream zoo`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer


def zoo(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE...]", help="Default: all of recipes/zoo.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Runs and report. Default: runs/zoo, or runs/zoo-search with --search.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Prepared data. Default: runs/demo/data, made from the bundled prose if missing."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each model. Default: 1.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of each run. Default: the recipes', or the search's.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Runs at a time. Default: one a GPU; with none, one a CPU.")
    ] = None,
    search: Annotated[bool, typer.Option("--search", help="Search each model's learning rate instead.")] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The search's record: the one to show (default: recipes/zoo/search.json), or with --search the one to "
            "write (default: zoo.study.json in --out).",
        ),
    ] = None,
) -> None:
    """Train every residual stream at one small size on the same batches and write a report; half an hour on two CPUs.

    It is the study `zoo`. Interrupted, the same command goes on where it stopped.
    """
    from widestream.study.run import StudyOptions
    from widestream.study.zoo import run_zoo, search_zoo

    options = StudyOptions(folder=out, data=data, seeds=seeds, steps=steps, workers=workers, search_only=search)
    if search:
        print(f"Record: {search_zoo(replace(options, record=record), recipes or ())}")
    else:
        run_zoo(options, recipes or (), record)
