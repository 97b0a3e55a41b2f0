"""`widestream study`: run and report studies."""

from pathlib import Path
from typing import Annotated

import typer

Scale = Annotated[str, typer.Option(help="cpu, gpu or paper: sizes and budgets.")]
Folder = Annotated[Path, typer.Option("--out", help="Runs and records, in a folder for each scale.")]


def run(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY...", help="Names, or paths of YAML files.")],
    scale: Scale = "cpu",
    out: Folder = Path("runs/study"),
    data: Annotated[Path | None, typer.Option(help="Prepared data. Default: what the study names.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of every arm. Default: the study's, usually 3.")] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at a time. Default: one a CPU, or a GPU.")] = None,
) -> None:
    """Carry out studies: search every arm's learning rate, then train every arm at every seed.

    Interrupted or killed, the same command goes on where it stopped. Started several times, here or on machines that
    share the folder, the processes divide the runs between them.
    """
    from widestream.study.run import StudyOptions, run_studies

    options = StudyOptions(scale=scale, folder=out, data=data, seeds=seeds, workers=workers)
    for record in run_studies(studies, options):
        print(f"Record: {record}")


def register(app: typer.Typer) -> None:
    """Add `widestream study` and its commands."""
    group = typer.Typer(no_args_is_help=True, help="Questions answered by many runs: seeds, searches, intervals.")
    group.command()(run)
    app.add_typer(group, name="study")
