"""From an arm of a study to its training runs: the whole recipe, the length, and a folder.

A folder's name holds a hash of all that can change a figure that is shown of a run: what is trained, on which tokens,
judged on which, and by what it is computed. So studies which train the same model in the same way share its runs, and
a changed recipe or text never meets an older run's folder. Where a study wants plain names, a folder that holds another
run is refused.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from widestream.data.manifest import MANIFEST, read_manifest
from widestream.data.remote import local_folder
from widestream.errors import UserError
from widestream.model.build import meta_model
from widestream.model.costs import EMBEDDINGS, count_parameters
from widestream.recipe import RunConfig, load_recipe, to_dict
from widestream.recipe.build import without_defaults
from widestream.recipe.model import ModelConfig
from widestream.runs.folder import differences, is_run, load_config, read_info
from widestream.runs.pool import Job
from widestream.study.overwritten import names
from widestream.study.spec import Arm, Study
from widestream.train.origin import weights_hash
from widestream.train.plan import make_plan

SEARCH_SEED = 100
"""Seed of weights and batches of search runs of a length of their own; a study's own seeds are 0, 1, ..."""
Prints = dict[str, str | None]
"""Fingerprints of the splits that a run is trained and judged on, and of the weights that it starts from, if it does
from any; None where they are not there yet."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study's runs and data lie."""

    folder: Path
    """Runs, records and reports of one scale."""
    data: Path | None = None
    """Prepared data; None: what the recipes say."""


def arm_config(
    study: Study, arm: Arm, place: Place, seed: int = 0, rate: float | None = None, share: float = 1.0
) -> RunConfig:
    """The recipe of one run of an arm, as `arm_job` has it.

    Raises:
        UserError: as `arm_job`.
    """
    return _resolve(study, arm, place, seed, rate, share)[1]


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
    changes, config = _resolve(study, arm, place, seed, rate, share)
    assert config.train.steps is not None
    if study.runs == "plain":
        folder = place.folder / (name or f"{arm.name}-seed{seed}")
    else:
        digits = recipe_hash(config, fingerprints(config))
        folder = place.folder / "runs" / f"{config.model.stream.kind}-{digits}-seed{seed}"
    return Job(recipe=arm.recipe, changes=changes, folder=folder, steps=config.train.steps)


def _resolve(
    study: Study, arm: Arm, place: Place, seed: int, rate: float | None, share: float
) -> tuple[tuple[str, ...], RunConfig]:
    """What `widestream train` is told of a run, and the recipe that this makes."""
    changes = [f"{key}={json.dumps(value)}" for key, value in arm.settings.items()]
    if study.search is not None and study.search.selection and not names(arm.settings, "train.selection"):
        changes.append(f"train.selection={study.search.selection!r}")
    changes += [f"train.seed={seed}", f"data.seed={seed}"]
    if place.data is not None:
        changes.append(f"data.path={json.dumps(str(place.data))}")
    if rate is not None:
        changes.append(f"optimizer.lr={rate!r}")
    try:
        config = load_recipe(arm.recipe, changes)
        length = _length(study, arm, max(1, round(share * full_steps(arm, config))))
        config = replace(config, train=replace(config.train, **length))
        make_plan(config)
    except UserError as error:
        raise UserError(f"Arm {arm.name} of the study {study.name}: {error}") from None
    return (*changes, *(f"train.{key}={json.dumps(value)}" for key, value in length.items())), config


def _length(study: Study, arm: Arm, steps: int) -> dict[str, int | None]:
    """Steps of a run, and how often it evaluates and saves, unless the arm sets that itself."""
    length: dict[str, int | None] = {"tokens": None, "steps": steps}
    if study.evaluations is not None:
        every = max(1, steps // study.evaluations)
        # A killed study loses at most one interval between evaluations, for every evaluation is saved.
        often = {"eval_every": every, "save_every": every, "keep": 1}
        length |= {key: value for key, value in often.items() if not names(arm.settings, f"train.{key}")}
    return length


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
    """Refuse folders with plain names in which another run lies, finished or not.

    Raises:
        UserError: a run there differs in what is trained, on what, or by what; names the differences.
    """
    for job in jobs:
        if study.runs == "hashed" or not is_run(job.folder):
            continue
        wanted, there = load_recipe(job.recipe, job.changes), load_config(job.folder)
        data = read_info(job.folder)["data"]
        old = {"train": data["fingerprint"], "heldout": data.get("heldout_fingerprint")}
        if wanted.train.init_from is not None:
            old["weights"] = read_info(job.folder).get("init_from", {}).get("sha256")
        new = {split: digest or old[split] for split, digest in fingerprints(wanted).items()}
        pairs = list(differences(decides(there, old), decides(wanted, new)))
        if pairs:
            listed = ", ".join(f"{key} ({old} there, {new} now)" for key, old, new in pairs)
            raise UserError(
                f"{job.folder} holds another run; it differs in {listed}. Give another folder with --out, or move that "
                "one away."
            )


def full_steps(arm: Arm, config: RunConfig) -> int:
    """Optimizer steps of a whole run: by the recipe, or by the arm's tokens for each non-embedding parameter."""
    if arm.tokens_per_parameter is None:
        return make_plan(config).steps
    tokens = arm.tokens_per_parameter * count_without_norm(config.model, "non_embedding")
    return max(1, -int(-tokens // (config.train.batch_size * (config.data.sequence_length or config.model.context))))


def count_without_norm(model: ModelConfig, which: Literal["parameters", "non_embedding"]) -> int:
    """Parameters, all or without those of the ends; norm gains left out, as in the paper's counts (Tables 8 and 9)."""
    left_out = ("norm", *EMBEDDINGS) if which == "non_embedding" else ("norm",)
    return sum(count for part, count in count_parameters(meta_model(model)).items() if part not in left_out)


def fingerprints(config: RunConfig) -> Prints:
    """What names a recipe's tokens, wherever they lie: those of the training split and of the held-out one.

    And the weights that it starts from, if it does from any.
    """
    start = {} if config.train.init_from is None else {"weights": weights_hash(Path(config.train.init_from))}
    folder, splits = (
        local_folder(config.data.path),
        {"train": config.data.train_split, "heldout": config.data.heldout_split},
    )
    if not (folder / MANIFEST).is_file():
        return dict.fromkeys(splits) | start
    manifest = read_manifest(folder)
    prints = {name: manifest.fingerprint(split) if split in manifest.splits else None for name, split in splits.items()}
    return prints | start


def recipe_hash(config: RunConfig, prints: Prints) -> str:
    """Digits of a hash of a recipe and its tokens, but for its name, its seeds, and where the data lies."""
    values = _deciding(without_defaults(config), prints)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def decides(config: RunConfig, prints: Prints) -> dict[str, Any]:
    """All that decides the figures of a run but its seeds: the recipe, by what it is computed, and the tokens."""
    return _deciding(to_dict(config), prints)


def _deciding(settings: dict[str, Any], prints: Prints) -> dict[str, Any]:
    values = {key: value for key, value in settings.items() if key not in ("name", "description")} | {"tokens": prints}
    # Weights are named by their hash, wherever they lie; while there are none yet, by their place.
    start = ("init_from",) if prints.get("weights") else ()
    for section, others in (("train", ("seed", *start)), ("data", ("seed", "path"))):
        inner = settings.get(section, {})
        values[section] = {key: value for key, value in inner.items() if key not in others}
    return values
