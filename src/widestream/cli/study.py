"""`widestream study`: run, report and keep studies."""

from pathlib import Path
from typing import Annotated

import typer

Scale = Annotated[str, typer.Option(help="cpu, gpu or paper: sizes and budgets.")]


def run(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY...", help="Names, or paths of YAML files.")],
    scale: Scale = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Runs and records, in a folder for each scale. Default: runs/study. Those of demo and zoo lie right "
            "there; default: runs/demo, runs/zoo (with --search runs/demo-search, runs/zoo-search)."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Prepared data. Default: what the study names.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of every arm. Default: the study's, usually 3.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Runs at a time. Default: one a GPU; with none, one a CPU.")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Search learning rates and stop; those of demo and zoo anew.")
    ] = False,
) -> None:
    """Carry out studies: search every arm's learning rate, then train every arm at every seed.

    Interrupted or killed, the same command goes on where it stopped. Started several times, here or on machines that
    share the folder, the processes divide the runs between them.
    """
    from widestream.study.run import StudyOptions, run_studies

    options = StudyOptions(scale=scale, folder=out, data=data, seeds=seeds, workers=workers, search_only=search)
    for record in run_studies(studies, options):
        print(f"Record: {record}")


def report(
    studies: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDY...]", help="Default: all that are there.")
    ] = None,
    runs: Annotated[
        Path, typer.Option(metavar="FOLDER|ARCHIVE", help="Results, as run or pack wrote them; a folder of both.")
    ] = Path("runs/study/cpu"),
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("studies.html"),
) -> None:
    """Write one HTML page of what is finished: the paper's number, ours, its interval, the scale, and every run."""
    from widestream.study.archive import opened
    from widestream.study.page.studies_page import write_studies

    with opened(runs) as folders:
        sections = write_studies(folders, out, studies or ())
    for section in sections:
        print(f"{section.title}\n" + "".join(f"  {answer}\n" for answer in section.answers))
    print(f"Report: {out}")


def pack(
    archive: Annotated[Path, typer.Argument(metavar="FILE.tar.xz", help="Replaced if it is there.")],
    runs: Annotated[Path, typer.Option(metavar="FOLDER", help="Results of one scale.")] = Path("runs/study/cpu"),
) -> None:
    """Keep results as one small file: records, recipes, metrics; no checkpoints."""
    from widestream.study.archive import pack_results

    print(f"{archive}: {pack_results(runs, archive)} runs, {archive.stat().st_size / 1e6:.1f} MB")


def list_studies() -> None:
    """List the studies that come with the package, with what they ask."""
    from widestream.study.spec import load_study, study_names

    for name in study_names():
        study = load_study(name)
        print(f"{name}: {study.title}\n  {study.question}\n  {len(study.arms)} arms, {study.seeds} seeds")
