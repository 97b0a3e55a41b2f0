"""`widestream zoo`."""

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
    data: Annotated[Path, typer.Option(help="Prepared data; made from the bundled prose if missing.")] = Path(
        "runs/demo/data"
    ),
    seeds: Annotated[int, typer.Option(help="Runs of each model.")] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Steps of each run. Default: the recipes', or the search's.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at a time. Default: one a CPU.")] = None,
    search: Annotated[bool, typer.Option("--search", help="Search each model's learning rate instead.")] = False,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The search's record. Default: recipes/zoo/search.json.")
    ] = None,
) -> None:
    """Train every residual stream at one small size on the same batches and write a report; half an hour on two CPUs.

    Interrupted, the same command goes on where it stopped.
    """
    from widestream.study.zoo import ZooOptions, run_zoo, search_rates

    folder = out or Path("runs/zoo-search" if search else "runs/zoo")
    options = ZooOptions(
        recipes=tuple(recipes or ()), folder=folder, data=data, record=record, seeds=seeds, steps=steps, workers=workers
    )
    if search:
        print(f"Record: {search_rates(options)}")
    else:
        run_zoo(options)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("zoo")(zoo)
