"""`widestream study`: run, report and keep studies; `demo` and `zoo`, two of them by name."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from widestream.cli.as_json import Json, print_json

Workers = Annotated[int | None, typer.Option(help="Runs at a time. Default: one a GPU; with none, one a CPU.")]
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
    workers: Workers = None,
    search: Annotated[
        bool, typer.Option("--search", help="Search learning rates and stop; those of demo and zoo anew.")
    ] = False,
    on: Annotated[
        str | None, typer.Option(metavar="slurm|local", help="Submit jobs, to Slurm or as processes here, and return.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Jobs; each makes a run at a time, or one a GPU of its own. Default: 1.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's partition. Default: the cluster's.")] = None,
    time: Annotated[
        int | None, typer.Option(metavar="MINUTES", help="Of a job; then it is queued again. Default: 240.")
    ] = None,
    gpus_per_job: Annotated[
        int | None, typer.Option(help="GPUs of a job. Default: what Slurm gives; local: all that are here.")
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A setting of submitit's SlurmExecutor, such as mem=32GB; repeatable."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show how far the jobs are until they end.")] = False,
) -> None:
    """Carry out studies: search every arm's learning rate, then train every arm at every seed.

    Interrupted or killed, the same command goes on where it stopped. Started several times, here or on machines that
    share the folder, the processes divide the runs between them. With --on they are jobs.
    """
    from widestream.study.cluster import ClusterOptions, submit_studies, wait_for
    from widestream.study.run import StudyOptions, run_studies

    options = StudyOptions(scale=scale, folder=out, data=data, seeds=seeds, workers=workers, search_only=search)
    cluster = ClusterOptions(
        on=on, jobs=jobs, minutes=time, partition=partition, gpus=gpus_per_job, settings=tuple(slurm or ()), wait=wait
    )
    if cluster.on is None:
        records = run_studies(studies, options)
    else:
        submission = submit_studies(studies, options, cluster)
        print(submission, flush=True)
        if not wait:
            return
        wait_for(submission)
        records = submission.records
    for record in records:
        print(f"Record: {record}")


def report(
    studies: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDY...]", help="Default: all that are there.")
    ] = None,
    runs: Annotated[
        Path, typer.Option(metavar="FOLDER|ARCHIVE", help="Results, as run or pack wrote them; a folder of both.")
    ] = Path("runs/study/cpu"),
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("studies.html"),
    as_json: Json = False,
) -> None:
    """Write one HTML page of what is finished: the paper's number, ours, its interval, the scale, and every run."""
    from widestream.study.archive import opened
    from widestream.study.page.studies_page import write_studies

    with opened(runs) as folders:
        sections = write_studies(folders, out, studies or ())
    if as_json:
        rows = [{"title": one.title, "answers": [*one.answers], "notes": [*one.notes]} for one in sections]
        print_json({"page": out, "studies": rows})
        return
    for section in sections:
        print(f"{section.title}\n" + "".join(f"  {line}\n" for line in (*section.answers, *section.notes)))
    print(f"Report: {out}")


def pack(
    archive: Annotated[Path, typer.Argument(metavar="FILE.tar.xz", help="Replaced if nothing in it is lost.")],
    runs: Annotated[Path, typer.Option(metavar="FOLDER", help="Results of one scale.")] = Path("runs/study/cpu"),
) -> None:
    """Keep results as one small file: records, recipes, metrics; no checkpoints."""
    from widestream.study.archive import pack_results

    print(f"{archive}: {pack_results(runs, archive)} runs, {archive.stat().st_size / 1e6:.1f} MB")


def list_studies(as_json: Json = False) -> None:
    """List the studies that come with the package, with what they ask."""
    from widestream.study.load import load_study, study_names

    studies = {name: load_study(name) for name in study_names()}
    if as_json:
        print_json(
            [
                {"name": name, "title": one.title, "question": one.question, "arms": [*one.arms], "seeds": one.seeds}
                for name, one in studies.items()
            ]
        )
        return
    for name, study in studies.items():
        print(f"{name}: {study.title}\n  {study.question}\n  {len(study.arms)} arms, {study.seeds} seeds")


def demo(
    out: Annotated[Path | None, typer.Option(help="Everything is written here. Default: runs/demo.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each model. Default: 2.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each run. Default: the recipes'.")] = None,
    workers: Workers = None,
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
    workers: Workers = None,
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
    """Train every residual stream at one small size on the same batches and write a report; forty minutes on two CPUs.

    It is the study `zoo`. Interrupted, the same command goes on where it stopped.
    """
    from widestream.study.run import StudyOptions
    from widestream.study.zoo import run_zoo, search_zoo

    options = StudyOptions(folder=out, data=data, seeds=seeds, steps=steps, workers=workers, search_only=search)
    if search:
        print(f"Record: {search_zoo(replace(options, record=record), recipes or ())}")
    else:
        run_zoo(options, recipes or (), record)
