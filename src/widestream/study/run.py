"""Carry out studies: the search for every arm's learning rate, then every arm at every seed, and a record of it all.

Everything that is decided is decided from run folders, so that a study that was killed goes on where it stopped, and
so that several processes that share the folder come to the same decisions.
"""

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widestream.data.manifest import read_manifest
from widestream.errors import UserError
from widestream.runs.pool import Job, run_jobs, visible_gpus
from widestream.study.corpus import prepare_corpus
from widestream.study.page.results import RECORD
from widestream.study.plan import SEARCH_SEED, Place, arm_job
from widestream.study.spec import Arm, Search, Study, load_study

Trials = dict[str, dict[float, Job]]
"""Search runs by arm and rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyOptions:
    """What can be changed about a study."""

    scale: str = "cpu"
    """cpu, gpu or paper."""
    folder: Path = Path("runs/study")
    """Runs and records are written in here, in a folder for each scale."""
    data: Path | None = None
    """Prepared data, in place of what the study prepares or its recipes name."""
    seeds: int | None = None
    """Runs of every arm; default: the study's."""
    workers: int | None = None
    """Runs at a time; default: one a GPU, or one a CPU where there is none."""

    def __post_init__(self):
        for name in ("seeds", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"A study needs at least one of --{name}, not {value}.")


def run_study(name: str, options: StudyOptions) -> Path:
    """Carry out a study, or what is left of it.

    Args:
        name: of a shipped study, or a path.
        options: scale, place and number of runs.

    Returns:
        The study's record, which `report` reads.

    Raises:
        UserError: the study cannot be carried out as it is written, or its data is missing. A run that fails or
            diverges is no error: it stands in the record.
    """
    study = load_study(name, options.scale, options.seeds)
    place = Place(options.folder / study.scale, find_data(study, options))
    for arm in study.arms:
        arm_job(study, arm, place, 0, None)  # what is wrong with an arm is said before any run
    workers = options.workers or _default_workers()
    record = place.folder / f"{study.name}{RECORD}"
    trials = search_rates(study, place, workers, lambda found: write_record(record, study, options, name, found, {}))
    runs = {
        arm.name: [arm_job(study, arm, place, seed, _rate(study, arm, trials)) for seed in range(study.seeds)]
        for arm in study.arms
    }
    write_record(record, study, options, name, trials, runs)
    in_turn = [runs[arm.name][seed] for seed in range(study.seeds) for arm in study.arms]
    try:
        run_jobs(in_turn, workers, may_diverge=True, may_fail=True)
    finally:
        write_record(record, study, options, name, trials, runs)
    return record


def find_data(study: Study, options: StudyOptions) -> Path | None:
    """The study's data: given, or prepared from the corpus that the study names; None: the recipes know.

    Raises:
        UserError: the given folder holds no prepared data, or another corpus was prepared for this scale.
    """
    if options.data is not None:
        if not (options.data / "manifest.json").is_file():
            raise UserError(f"{options.data} holds no prepared data; make it with `widestream data prepare`.")
        return options.data
    if study.corpus is None:
        return None
    source, vocab_size = study.corpus["source"], study.corpus["vocab_size"]
    data = prepare_corpus(options.folder / study.scale, source, vocab_size)
    there = read_manifest(data)
    sources = [entry["source"] for entry in there.sources]
    if sources != [source] or there.tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{data} was prepared from {', '.join(sources)} with {there.tokenizer.vocab_size:,} ids, and the study "
            f"{study.name} wants {source} with {vocab_size:,}; give another folder with --out."
        )
    return data


def search_rates(study: Study, place: Place, workers: int, say: Callable[[Trials], None]) -> Trials:
    """Train every arm that has a search of its own at the rates of the grid, which grows while its best is at its edge.

    Args:
        study: its arms and grid.
        place: where.
        workers: runs at a time.
        say: told of the trials before every round.

    Returns:
        The runs by arm and rate; empty without a search.

    Raises:
        UserError: a run failed. Without it no rate is chosen, for a second try could have chosen another.
    """
    search = study.search
    if search is None:
        return {}
    searched = [arm for arm in study.arms if arm.rate_of is None]
    trials = {arm.name: {rate: _trial(study, arm, place, rate) for rate in search.rates} for arm in searched}
    while True:
        say(trials)
        jobs = [job for found in trials.values() for job in found.values()]
        run_jobs(jobs, workers, may_diverge=True)
        grown = False
        for arm in searched:
            rate = next_rate({rate: job.heldout_loss for rate, job in trials[arm.name].items()}, search)
            if rate is not None:
                trials[arm.name][rate] = _trial(study, arm, place, rate)
                grown = True
        if not grown:
            return trials


def _trial(study: Study, arm: Arm, place: Place, rate: float) -> Job:
    assert study.search is not None
    share = study.search.share if arm.share is None else arm.share
    return arm_job(study, arm, place, 0 if share == 1 else SEARCH_SEED, rate, share)


def next_rate(losses: dict[float, float | None], search: Search) -> float | None:
    """The rate to try next: beyond the edge at which the best one lies, by the grid's own ratio; None: it is enough.

    Args:
        losses: by rate; None for a run that diverged or failed.
        search: for the number of rates.
    """
    best = best_rate(losses)
    if best is None or len(losses) >= search.most:
        return None
    rates = sorted(losses)
    ratio = search.rates[1] / search.rates[0]
    if best == rates[0]:
        return float(f"{rates[0] / ratio:.3g}")
    return float(f"{rates[-1] * ratio:.3g}") if best == rates[-1] else None


def best_rate(losses: dict[float, float | None]) -> float | None:
    """The rate of the lowest loss; None where no run came to its end."""
    known = {rate: loss for rate, loss in losses.items() if loss is not None}
    return min(known, key=lambda rate: known[rate]) if known else None


def _rate(study: Study, arm: Arm, trials: Trials) -> float | None:
    """Peak rate of an arm; None: the recipe's."""
    own = arm.rate_of or arm.name
    if study.search is None or own == "recipe":
        return None
    rate = best_rate({rate: job.heldout_loss for rate, job in trials[own].items()})
    if rate is None:
        # Every rate diverged or failed. Its runs are made all the same, at the lowest, and shown as what they are.
        return min(trials[own])
    return rate


def write_record(
    path: Path,
    study: Study,
    options: StudyOptions,
    name: str,
    trials: Trials,
    runs: dict[str, list[Job]],
) -> None:
    """Write what a report needs: the question, the arms, and where every run lies and how it ended."""

    def state(job: Job) -> dict[str, Any]:
        status = "done" if job.done else "diverged" if job.diverged else "failed" if job.failed else "unfinished"
        told = {"why": job.last_words} if job.failed else {}
        train = f"widestream train {job.recipe} {shlex.join(job.changes)} --out {job.folder}"
        return {"folder": f"runs/{job.folder.name}", "status": status, "steps": job.steps, "command": train} | told

    value = {
        "study": study.name,
        "scale": study.scale,
        "title": study.title,
        "question": study.question,
        "mirrors": study.mirrors,
        "command": f"widestream study run {name}{_flags(options)}",
        "seeds": study.seeds,
        "reference": study.reference,
        "analysis": study.analysis,
        "corpus": study.corpus,
        "search": None if study.search is None else {"rates": study.search.rates, "share": study.search.share},
        "arms": [
            {
                "name": arm.name,
                "group": arm.group,
                "about": arm.about,
                "recipe": arm.recipe,
                "settings": arm.settings,
                "tokens_per_parameter": arm.tokens_per_parameter,
                "rate_of": arm.rate_of,
                "paper": arm.paper,
                "rate": _rate(study, arm, trials),
                "trials": [
                    {"lr": rate, "loss": job.heldout_loss} | state(job)
                    for rate, job in sorted(trials.get(arm.name, {}).items())
                ],
                "runs": [{"seed": seed} | state(job) for seed, job in enumerate(runs.get(arm.name, []))],
            }
            for arm in study.arms
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}")  # another process may write the same record now
    aside.write_text(json.dumps(value, indent=1) + "\n")
    aside.replace(path)


def _flags(options: StudyOptions) -> str:
    """What was asked for beyond the defaults, as the command line takes it."""
    default = StudyOptions()
    given = (("scale", "--scale"), ("folder", "--out"), ("data", "--data"), ("seeds", "--seeds"))
    return "".join(
        f" {flag} {shlex.quote(str(getattr(options, field)))}"
        for field, flag in given
        if getattr(options, field) != getattr(default, field)
    )


def run_studies(names: Sequence[str], options: StudyOptions) -> list[Path]:
    """Carry out several studies, one after the other; runs that they have in common are made once.

    Returns:
        Their records.
    """
    for name in names:
        load_study(name, options.scale, options.seeds)  # a wrong name is told before the first run
    return [run_study(name, options) for name in names]


def _default_workers() -> int:
    return len(visible_gpus()) or os.cpu_count() or 1
