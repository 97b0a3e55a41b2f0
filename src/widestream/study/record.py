"""The record of a study: the question, the arms, and where every run lies, how it was made and what became of it."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

from widestream.errors import UserError
from widestream.runs.pool import Job
from widestream.study.spec import Arm, Study

Trials = dict[str, dict[float, Job]]
"""Search runs by arm and rate."""
Runs = dict[str, list[Job]]
"""Runs by arm, one a seed."""


def best_rate(losses: dict[float, float | None]) -> float | None:
    """The rate of the lowest loss; None where no run came to its end."""
    known = {rate: loss for rate, loss in losses.items() if loss is not None}
    return min(known, key=lambda rate: known[rate]) if known else None


def losses_by_rate(trials: dict[float, Job]) -> dict[float, float | None]:
    """Held-out losses of an arm's search; None for a run that diverged or is not done."""
    return {rate: job.heldout_loss for rate, job in trials.items()}


def rate_of(arm: Arm, trials: Trials) -> float | None:
    """Peak rate of an arm; None: the recipe's."""
    searched = trials.get(arm.rate_of or arm.name)
    if searched is None:
        return None
    # Where every rate diverged or failed, its runs are made all the same, at the lowest, and shown as what they are.
    return best_rate(losses_by_rate(searched)) or min(searched)


def write_study_record(path: Path, study: Study, command: str, trials: Trials, runs: Runs) -> None:
    """Write what a report needs.

    Args:
        path: the record.
        study: what is asked of which arms.
        command: the command line that carries the study out.
        trials: the search's runs.
        runs: the runs of all arms.

    Raises:
        UserError: a file lies there that is no record of a study, or the record of another one.
    """
    arms = [_arm_entry(arm, path.parent, trials, runs) for arm in study.arms]
    if study.search is not None and study.search.record is not None:
        arms = _with_earlier(arms, _read_arms(path, study.name))
    value = {
        "study": study.name,
        "scale": study.scale,
        "title": study.title,
        "question": study.question,
        "mirrors": study.mirrors,
        "command": command,
        "seeds": study.seeds,
        "reference": study.reference,
        "analysis": study.analysis,
        "corpus": study.corpus,
        "search": None if study.search is None else {"rates": study.search.rates, "share": study.search.share},
        "arms": arms,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}")  # another process may write the same record now
    aside.write_text(json.dumps(value, indent=1) + "\n")
    aside.replace(path)


def _arm_entry(arm: Arm, folder: Path, trials: Trials, runs: Runs) -> dict[str, Any]:
    return {
        "name": arm.name,
        "group": arm.group,
        "about": arm.about,
        "recipe": arm.recipe,
        "settings": arm.settings,
        "tokens_per_parameter": arm.tokens_per_parameter,
        "rate_of": arm.rate_of,
        "paper": arm.paper,
        "rate": rate_of(arm, trials),
        "trials": [
            {"lr": rate, "loss": job.heldout_loss} | _state(job, folder)
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


def _with_earlier(arms: list[dict[str, Any]], earlier: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What is recorded now, and what stands there and is none of this call's: other arms, the search or the runs."""
    whole = []
    for arm in arms:
        before = earlier.pop(arm["name"], {"trials": [], "runs": []})
        whole.append(arm | {key: arm[key] or before[key] for key in ("trials", "runs")})
    return [*whole, *earlier.values()]


def _read_arms(path: Path, study: str) -> dict[str, dict[str, Any]]:
    """Arms of the record that is there, by name; none where there is no record yet."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        arms = {arm["name"]: arm for arm in record["arms"]} if record["study"] == study else None
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        arms = None
    if arms is None:
        raise UserError(f"{path} is no record of the study {study}, and stays as it is; give another file or folder.")
    return arms
