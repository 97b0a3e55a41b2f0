"""From an arm of a study to its training runs: the whole recipe, the length, and a folder named after the recipe.

A folder's name holds a hash of everything that is trained, so that studies which train the same model in the same way
share its runs, and so that a changed recipe never meets an older run's folder.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widestream.data.manifest import MANIFEST, read_manifest
from widestream.errors import UserError
from widestream.recipe import RunConfig, load_recipe, to_dict
from widestream.recipe.train import COMPUTES
from widestream.runs.pool import Job
from widestream.study.spec import Arm, Study

SEARCH_SEED = 100
"""Seed of weights and batches of shortened search runs; a study's own seeds are 0, 1, ..."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study's runs and data lie."""

    folder: Path
    """Runs, records and reports of one scale."""
    data: Path | None = None
    """Prepared data; None: what the recipes say."""


def arm_job(study: Study, arm: Arm, place: Place, seed: int, rate: float | None, share: float = 1.0) -> Job:
    """One run of an arm.

    Args:
        study: for its number of evaluations.
        arm: the model.
        place: where.
        seed: of weights and batches.
        rate: peak learning rate; None: the recipe's.
        share: part of the arm's full length.

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
    every = max(1, steps // study.evaluations)
    # A killed study loses at most one interval between evaluations, for every evaluation is saved.
    changes += [
        "train.tokens=null", f"train.steps={steps}", f"train.eval_every={every}", f"train.save_every={every}",
        "train.keep=1",
    ]  # fmt: skip
    config = load_recipe(arm.recipe, changes)
    folder = place.folder / "runs" / run_name(config, seed, fingerprint(config))
    return Job(recipe=arm.recipe, changes=tuple(changes), folder=folder, steps=steps)


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


def run_name(config: RunConfig, seed: int, tokens: str | None = None) -> str:
    """Folder of a run: the stream's kind, ten digits of a hash of all that is trained, the seed.

    Args:
        config: the recipe.
        seed: of weights and batches.
        tokens: fingerprint of the data.
    """
    return f"{config.model.stream.kind}-{recipe_hash(config, tokens)}-seed{seed}"


def recipe_hash(config: RunConfig, tokens: str | None) -> str:
    """Hash of a recipe and its tokens, but for its name, its seeds, its data's place, and what only computes."""
    values: dict[str, Any] = to_dict(config) | {"tokens": tokens}
    for key in ("name", "description"):
        del values[key]
    for section, keys in {"train": ("seed", *COMPUTES), "data": ("seed", "path")}.items():
        for key in keys:
            del values[section][key]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
