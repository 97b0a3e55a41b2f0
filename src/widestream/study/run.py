"""Carry out studies: the search for every arm's learning rate, then every arm at every seed, and a record of it all.

Everything that is decided is decided from run folders, so that a study that was killed goes on where it stopped, and
so that several processes that share the folder come to the same decisions.
"""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from widestream.errors import UserError
from widestream.runs.pool import Job, run_jobs, visible_gpus
from widestream.study.check import check_plan
from widestream.study.corpus import find_data
from widestream.study.load import load_study
from widestream.study.page.results import RECORD
from widestream.study.plan import Place, arm_job, refuse_others
from widestream.study.rates import Trials, rate_of, search_rates
from widestream.study.record import Runs, require_own_record, write_study_record
from widestream.study.reuse import made_otherwise
from widestream.study.spec import Study


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyOptions:
    """What can be changed about a study."""

    scale: str = "cpu"
    """cpu, gpu or paper."""
    folder: Path | None = None
    """Runs and records are written in here, in a folder for each scale; default: runs/study. A study whose runs have
    plain names lies right there; default: runs/NAME, and runs/NAME-search for its search alone."""
    data: Path | None = None
    """Prepared data, in place of what the study prepares or its recipes name."""
    seeds: int | None = None
    """Runs of every arm; default: the study's."""
    steps: int | None = None
    """Optimizer steps of every run; default: the study's or its recipes'."""
    workers: int | None = None
    """Runs at a time; default: one a GPU, or one a CPU where there is none."""
    search_only: bool = False
    """Whether to stop after the search for learning rates. A search that the study has a record of is made anew."""
    record: Path | None = None
    """Where the study's record is written; default: NAME.study.json beside the runs."""

    def __post_init__(self):
        for name in ("seeds", "steps", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"A study needs at least one of --{name}, not {value}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A study that was carried out."""

    study: Study
    """As it was carried out."""
    folder: Path
    """Where its runs lie."""
    record: Path
    """Its record."""
    jobs: list[Job]
    """The runs of all arms, in the order in which they were started; those of the search are left out."""


def run_study(name: str, options: StudyOptions) -> Path:
    """Carry out a study, or what is left of it.

    Args:
        name: of a shipped study, or a path.
        options: scale, place and number of runs.

    Returns:
        The study's record, which `report` reads.

    Raises:
        UserError: the study cannot be carried out as it is written, its data is missing, or every run failed. A run
            that fails while others do not, or that diverges, is no error: it stands in the record.
    """
    command = command_line(f"widestream study run {name}", options)
    return carry_out(load_study(name, options.scale, options.seeds), options, command).record


def carry_out(study: Study, options: StudyOptions, command: str) -> Outcome:
    """Carry out a study that was read already.

    Args:
        study: what to do.
        options: length, place and how many runs at a time.
        command: the command line that does it, for the record.

    Raises:
        UserError: as `run_study`.
    """
    study = study if options.steps is None else study.of_length(options.steps)
    path, place = prepare_study(study, options)
    write = partial(write_study_record, path, study, place, command)
    workers = options.workers or len(visible_gpus()) or os.cpu_count() or 1
    trials: Trials = {}
    if study.search is not None and (options.search_only or study.search.record is None):
        trials = search_rates(
            study, place, lambda jobs: run_jobs(jobs, workers, may_diverge=True), lambda trials: write(trials, {})
        )
    seeds = range(0 if options.search_only else study.seeds)
    runs: Runs = {
        arm.name: [arm_job(study, arm, place, seed, rate_of(study, place, arm, trials)) for seed in seeds]
        for arm in study.arms
    }
    in_turn = [runs[arm.name][seed] for seed in seeds for arm in study.arms]
    refuse_others(study, in_turn)
    write(trials, runs)
    tried = [job for by_rate in trials.values() for job in by_rate.values()]
    if (told := made_otherwise([*tried, *in_turn])) is not None:
        print(told)
    try:
        if in_turn:
            run_jobs(in_turn, workers, may_diverge=True, may_fail=True)
    finally:
        write(trials, runs)
    if in_turn and all(job.failed for job in in_turn):
        raise UserError(f"Every run of the study {study.name} failed ({path} says so). {in_turn[0].failure}")
    return Outcome(study=study, folder=place.folder, record=path, jobs=in_turn)


def prepare_study(study: Study, options: StudyOptions) -> tuple[Path, Place]:
    """Refuse what can be refused before anything is trained, and prepare data where they are missing.

    Args:
        study: what to do, at its length.
        options: place and data.

    Returns:
        The study's record, which need not be there yet; and where its runs and data lie.

    Raises:
        UserError: the study cannot be carried out as it is written, or its data is missing.
    """
    if options.search_only and study.search is None:
        raise UserError(f"The study {study.name} has no `search`, so there are no rates to try.")
    folder = place_folder(study, options)
    path = options.record or folder / f"{study.name}{RECORD}"
    require_own_record(path, study)
    place = Place(folder, find_data(study, folder, options.data))
    check_plan(study, place, options.data is not None)
    return path, place


def place_folder(study: Study, options: StudyOptions) -> Path:
    """Where a study's runs and record lie."""
    if study.runs == "plain":
        return options.folder or Path("runs") / f"{study.name}{'-search' if options.search_only else ''}"
    return (options.folder or Path("runs/study")) / study.scale


def command_line(beginning: str, options: StudyOptions) -> str:
    """The command line that carries a study out: what was asked for beyond the defaults comes behind its beginning."""
    default = StudyOptions()
    given = (("scale", "--scale"), ("folder", "--out"), ("data", "--data"), ("seeds", "--seeds"), ("steps", "--steps"),
             ("record", "--record"))  # fmt: skip
    flags = [
        f" {flag} {shlex.quote(str(getattr(options, key)))}"
        for key, flag in given
        if getattr(options, key) != getattr(default, key)
    ]
    return beginning + (" --search" if options.search_only else "") + "".join(flags)


def run_studies(names: Sequence[str], options: StudyOptions) -> list[Path]:
    """Carry out several studies, one after the other; runs that they have in common are made once.

    Returns:
        Their records.
    """
    for name in names:
        load_study(name, options.scale, options.seeds)  # a wrong name is told before the first run
    return [run_study(name, options) for name in names]
