"""The record of a study: the question, the arms, and where every run lies, how it was made and what became of it.

Evidence is not overwritten. What stands in a record and is none of this call's stays: further seeds, the search or the
runs, and, under `earlier`, arms that the study no longer has, or had otherwise. Another study's record is left alone.
"""

import os
import shlex
from pathlib import Path
from typing import Any

from widestream.errors import UserError
from widestream.files import make_folder, read_json, write_json
from widestream.recipe.load import RECIPES
from widestream.runs.pool import Job
from widestream.study.load import STUDIES
from widestream.study.plan import Place
from widestream.study.rates import Trials, rate_of, rate_source
from widestream.study.spec import Arm, Study

Runs = dict[str, list[Job]]
"""Runs by arm, one a seed."""
Entry = dict[str, Any]
"""An arm in a record."""
SAME = ("name", "recipe", "settings", "tokens_per_parameter")
"""What two entries agree on if they are of the same arm."""


def write_study_record(path: Path, study: Study, place: Place, command: str, trials: Trials, runs: Runs) -> None:
    """Write what a report needs.

    Args:
        path: the record.
        study: what is asked of which arms.
        place: where its runs and data lie.
        command: the command line that carries the study out.
        trials: the search's runs.
        runs: the runs of all arms.

    Raises:
        UserError: as `require_own_record`.
    """
    make_folder(path.parent)
    before = require_own_record(path, study)
    search = study.search
    value = {
        "study": study.name,
        "file": _file(path, study),
        "scale": study.scale,
        "title": study.title,
        "question": study.question,
        "mirrors": study.mirrors,
        "command": command,
        "seeds": study.seeds,
        "reference": study.reference,
        "analysis": study.analysis,
        "corpus": study.corpus,
        "search": search and {"rates": search.rates, "share": search.share, "selection": search.selection},
        "arms": [_arm_entry(study, place, arm, path.parent, trials, runs) for arm in study.arms],
        "earlier": [],
    }
    if before is not None:
        value["arms"], rest = _with_earlier(value["arms"], [*before["arms"], *before.get("earlier", [])])
        if search is not None and search.record is not None:  # a call is of some of its arms
            names = {arm["name"] for arm in value["arms"]}
            value["arms"] += [arm for arm in rest if arm["name"] not in names]
            rest = [arm for arm in rest if arm["name"] in names]
        value["earlier"] = rest
    write_json(path, value, indent=1)


def require_own_record(path: Path, study: Study) -> dict[str, Any] | None:
    """The record that lies where a study's belongs; None where there is none.

    Raises:
        UserError: a file lies there that is no record of a study, or the record of another study, or the place is that
            of a record that comes with the package.
    """
    if path.resolve().is_relative_to(RECIPES.folder.resolve()):
        raise UserError(f"{path} comes with the package, and stays as it is; give another file or folder.")
    if not path.exists():
        return None
    fault = f"{path} is no record of the study {study.name}, and stays as it is; give another file or folder."
    try:
        record = read_json(path)
        arms = [*record["arms"], *record.get("earlier", [])]
        sound = all(arm["name"] and all(isinstance(run["folder"], str) for run in _rows(arm)) for arm in arms)
        if record["study"] != study.name or not sound:
            raise UserError(fault)
        asked = {key: record[key] for key in ("title", "question")}
    except (UserError, KeyError, TypeError):
        raise UserError(fault) from None
    now = {"title": study.title, "question": study.question}
    if asked != now and record.get("file") != _file(path, study):
        other = next(value for key, value in asked.items() if value != now[key])
        raise UserError(
            f"{path} is the record of another study called {study.name} ({other!r}), and stays as it is; give another "
            "folder with --out, or the file of this study another name."
        )
    if (other := _other_file(record, path, study)) is not None:
        raise UserError(
            f"{path} is the record of another study file of this name, {other}, and stays as it is; give another "
            "folder with --out, or the file of this study another name."
        )
    return record


def _other_file(record: dict[str, Any], path: Path, study: Study) -> Path | None:
    """The file of the study that a record is of, if that is still there and says something else than this one's."""
    shipped = STUDIES.folder / f"{study.name}.yaml"
    there, here = record.get("file") or shipped, study.file or shipped
    other = path.parent.resolve() / there
    if "file" not in record or not other.is_file() or not here.is_file() or other.read_bytes() == here.read_bytes():
        return None
    return None if other.samefile(here) else other


def _file(path: Path, study: Study) -> str | None:
    """Where a study's file lies, as seen from its record; None: it comes with the package."""
    return None if study.file is None else os.path.relpath(study.file.resolve(), path.parent.resolve())


def _arm_entry(study: Study, place: Place, arm: Arm, folder: Path, trials: Trials, runs: Runs) -> dict[str, Any]:
    return {
        "name": arm.name,
        "group": arm.group,
        "about": arm.about,
        "recipe": arm.recipe,
        "settings": arm.settings,
        "tokens_per_parameter": arm.tokens_per_parameter,
        "rate_of": arm.rate_of,
        "rate_from": rate_source(study, arm, trials),
        "paper": arm.paper,
        "rate": rate_of(study, place, arm, trials),
        "trials": [
            {"lr": rate, "loss": job.choosing_loss} | _state(job, folder)
            for rate, job in sorted(trials.get(arm.name, {}).items())
        ],
        "runs": [{"seed": seed} | _state(job, folder) for seed, job in enumerate(runs.get(arm.name, []))],
    }


def _state(job: Job, folder: Path) -> dict[str, Any]:
    status = "done" if job.done else "diverged" if job.diverged else "failed" if job.failed else "unfinished"
    reason = {"why": job.last_words} if job.failed else {}
    train = f"widestream train {job.recipe} {shlex.join(job.changes)} --out {job.folder}"
    place = os.path.relpath(job.folder, folder)
    return {"folder": place, "status": status, "steps": job.steps, "command": train} | reason


def _with_earlier(arms: list[Entry], before: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The arms of this call, with what stands of them already; and what of the record would else be lost."""
    whole = []
    for arm in arms:
        same = (old for old in before if all(old.get(key) == arm[key] for key in SAME))
        if (old := next(same, None)) is not None and _one_search(arm["trials"], old["trials"]):
            arm = arm | {"trials": arm["trials"] or old["trials"], "runs": _with_further(arm["runs"], old["runs"])}
        whole.append(arm)
    named = {folder for arm in whole for folder in _folders(arm)}
    return whole, [old for old in before if not _folders(old) <= named]


def _one_search(trials: list[dict[str, Any]], before: list[dict[str, Any]]) -> bool:
    """Whether trials are of the same search as those of before; runs of another one are at a rate that it chose."""
    folders, earlier = ({trial["folder"] for trial in one} for one in (trials, before))
    return not folders or not earlier or bool(folders & earlier)


def _with_further(runs: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An arm's runs, and those of further seeds that are of the same recipe, rate and data: folders differ by seed."""

    def alike(run: dict[str, Any]) -> str:
        return run["folder"].rpartition("-seed")[0]

    seeds, kinds = {run["seed"] for run in runs}, {alike(run) for run in runs}
    return [*runs, *(run for run in before if run["seed"] not in seeds and (not runs or alike(run) in kinds))]


def _rows(arm: Entry) -> list[dict[str, Any]]:
    return [*arm["trials"], *arm["runs"]]


def _folders(arm: Entry) -> set[str]:
    return {run["folder"] for run in _rows(arm)}
