"""From an arm of a study to its training runs: the whole recipe, the length, and a folder.

A folder's name holds a hash of everything that is trained, so that studies which train the same model in the same way
share its runs, and so that a changed recipe never meets an older run's folder. Where a study wants plain names, a
folder that holds another recipe's run is refused.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from widestream.data.manifest import MANIFEST, read_manifest
from widestream.errors import UserError
from widestream.recipe import RunConfig, load_recipe, to_dict
from widestream.recipe.train import COMPUTES
from widestream.runs.folder import differences, is_run, load_config, read_info
from widestream.runs.pool import Job
from widestream.study.spec import Arm, Study

SEARCH_SEED = 100
"""Seed of weights and batches of search runs of a length of their own; a study's own seeds are 0, 1, ..."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study's runs and data lie."""

    folder: Path
    """Runs, records and reports of one scale."""
    data: Path | None = None
    """Prepared data; None: what the recipes say."""


def arm_job(
    study: Study, arm: Arm, place: Place, seed: int, rate: float | None, share: float = 1.0, name: str | None = None
) -> Job:
    """One run of an arm.

    Args:
        study: for its number of evaluations and how its runs are called.
        arm: the model.
        place: where.
        seed: of weights and batches.
        rate: peak learning rate; None: the recipe's.
        share: part of the arm's full length.
        name: of the folder, where the study's have plain names; default: the arm and the seed.

    Raises:
        UserError: the recipe does not exist or the arm's settings do not fit it; names the arm.
    """
    changes = [f"{key}={json.dumps(value)}" for key, value in arm.settings.items()]
    changes += [f"train.seed={seed}", f"data.seed={seed}"]
    if place.data is not None:
        changes.append(f"data.path={json.dumps(str(place.data))}")
    if rate is not None:
        changes.append(f"optimizer.lr={rate!r}")
    try:
        config = load_recipe(arm.recipe, changes)
        steps = max(1, round(share * full_steps(arm, config)))
    except UserError as error:
        raise UserError(f"Arm {arm.name} of the study {study.name}: {error}") from None
    length: dict[str, int | None] = {"tokens": None, "steps": steps}
    if study.evaluations is not None:
        every = max(1, steps // study.evaluations)
        # A killed study loses at most one interval between evaluations, for every evaluation is saved.
        length |= {"eval_every": every, "save_every": every, "keep": 1}
    changes += [f"train.{key}={json.dumps(value)}" for key, value in length.items()]
    if study.runs == "plain":
        folder = place.folder / (name or f"{arm.name}-seed{seed}")
    else:
        config = replace(config, train=replace(config.train, **length))
        digits = recipe_hash(config, fingerprint(config))
        folder = place.folder / "runs" / f"{config.model.stream.kind}-{digits}-seed{seed}"
    return Job(recipe=arm.recipe, changes=tuple(changes), folder=folder, steps=steps)


def trial_job(study: Study, arm: Arm, place: Place, rate: float) -> Job:
    """A run of the study's search: an arm at one rate."""
    search = study.search
    assert search is not None
    if search.steps is not None:
        length, share = {"train.tokens": None, "train.steps": search.steps}, 1.0
        arm = replace(arm, settings=arm.settings | search.settings | length, tokens_per_parameter=None)
        seed = SEARCH_SEED
    else:
        arm = replace(arm, settings=arm.settings | search.settings)
        share = search.share if arm.share is None else arm.share
        seed = 0 if share == 1 else SEARCH_SEED
    return arm_job(study, arm, place, seed, rate, share, name=f"{arm.name}-{rate:g}")


def refuse_others(study: Study, jobs: Iterable[Job]) -> None:
    """Refuse folders with plain names in which another recipe's run lies, finished or not.

    Raises:
        UserError: a run there differs in what is trained, or on what; names the differences.
    """
    for job in jobs:
        if study.runs == "hashed" or not is_run(job.folder):
            continue
        wanted, there = load_recipe(job.recipe, job.changes), load_config(job.folder)
        tokens = read_info(job.folder)["data"]["fingerprint"]
        pairs = list(differences(_trained(there, tokens), _trained(wanted, fingerprint(wanted) or tokens)))
        if pairs:
            listed = ", ".join(f"{key} ({old} there, {new} now)" for key, old, new in pairs)
            raise UserError(
                f"{job.folder} holds another run; it differs in {listed}. Give another folder with --out, or move that "
                "one away."
            )


def full_steps(arm: Arm, config: RunConfig) -> int:
    """Optimizer steps of a whole run: by the recipe, or by the arm's tokens for each non-embedding parameter."""
    from widestream.model.costs import summarize

    tokens_per_step = config.train.batch_size * (config.data.sequence_length or config.model.context)
    if arm.tokens_per_parameter is not None:
        summary = summarize(config.model)  # norm gains left out, as in the paper's counts (Tables 8 and 9)
        tokens = arm.tokens_per_parameter * (summary.non_embedding_parameters - summary.parts.get("norm", 0))
    elif config.train.steps is not None:
        return config.train.steps
    elif config.train.tokens is not None:
        tokens = config.train.tokens
    else:
        raise UserError("the length of a run is not given; set train.steps, train.tokens or tokens_per_parameter.")
    return max(1, -int(-tokens // tokens_per_step))


def fingerprint(config: RunConfig) -> str | None:
    """What names a recipe's tokens, wherever they lie; None where they are not prepared yet."""
    folder = Path(config.data.path)
    return read_manifest(folder).fingerprint("train") if (folder / MANIFEST).is_file() else None


def recipe_hash(config: RunConfig, tokens: str | None) -> str:
    """Digits of a hash of a recipe and its tokens, but for its name, seeds, data's place, and what only computes."""
    return hashlib.sha256(json.dumps(_trained(config, tokens), sort_keys=True).encode()).hexdigest()[:10]


def _trained(config: RunConfig, tokens: str | None) -> dict[str, Any]:
    """All that decides what is trained, and on what."""
    values: dict[str, Any] = to_dict(config) | {"tokens": tokens}
    for key in ("name", "description"):
        del values[key]
    for section, keys in {"train": ("seed", *COMPUTES), "data": ("seed", "path")}.items():
        for key in keys:
            del values[section][key]
    return values
