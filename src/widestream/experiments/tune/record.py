"""What a search leaves behind: tune.json with every trial, the recipe of the best settings, and a page."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from widestream.experiments.tune.options import TuneOptions, trial_folder
from widestream.experiments.tune.section import page, sentences
from widestream.experiments.tune.space import KEYS
from widestream.files import write_json, write_text
from widestream.recipe.load import find_recipe, recipe_names
from widestream.runs.folder import read_done
from widestream.version import __version__

if TYPE_CHECKING:
    import optuna

RECORD, RECIPE, PAGE = "tune.json", "best.yaml", "tune.html"
DIGITS = 3
"""Significant digits of settings in a recipe."""
ENOUGH = 5
"""PED-ANOVA looks at the best trials; its authors ask for so many of them."""


def write_record(study: "optuna.Study", options: TuneOptions, setup: dict[str, Any]) -> dict[str, Any]:
    """Write record and page and, once a trial is done, the recipe; returns the record."""
    record = make_record(study, options, setup)
    write_json(options.folder / RECORD, record, indent=1)
    if record["best"] is not None:
        write_text(options.folder / RECIPE, recipe_text(record))
    write_text(options.folder / PAGE, page(record))
    return record


def make_record(study: "optuna.Study", options: TuneOptions, setup: dict[str, Any]) -> dict[str, Any]:
    """Everything about a search as plain values for JSON.

    Returns:
        recipe, changes, command, versions; setup (recipe, data, space and sampler that all trials shared); trials by
        number with state (done, diverged, running), settings, loss in nats per token, reason and seconds; importance by
        setting with its method; best, the number of the best trial, or None.
    """
    import optuna

    trials = [_row(trial, options) for trial in study.get_trials(deepcopy=False)]
    done = [row for row in trials if row["state"] == "done"]
    best = min(done, key=lambda row: row["loss"], default=None)
    return {
        "recipe": options.recipe,
        "changes": list(options.changes),
        "command": command(options),
        "versions": {"widestream": __version__, "optuna": optuna.__version__},
        "interval": options.space.interval,
        "seed": options.space.seed,
        "setup": setup,
        "trials": trials,
        "importance": importance(study, len(done)),
        "best": None if best is None else best["number"],
    }


def _row(trial: "optuna.trial.FrozenTrial", options: TuneOptions) -> dict[str, Any]:
    states = {"COMPLETE": "done", "PRUNED": "diverged"}
    done = read_done(trial_folder(options, trial.number))
    return {
        "number": trial.number,
        "state": states.get(trial.state.name, "running"),
        "settings": dict(trial.params),
        "loss": trial.value,
        "reason": trial.user_attrs.get("reason"),
        "training_s": None if done is None else done["wall_s"],
    }


def importance(study: "optuna.Study", done: int) -> dict[str, Any] | None:
    """Share of every setting in reaching the best trials (PED-ANOVA, arXiv 2304.10255); None for too few trials."""
    if done < 2 * ENOUGH:
        return None
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    quantile = max(0.1, ENOUGH / done)
    shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=quantile))
    return {"method": "PED-ANOVA", "best_share": quantile, "shares": {name: float(v) for name, v in shares.items()}}


def command(options: TuneOptions) -> str:
    """The command line of the search."""
    steps = [] if options.trial_steps is None else ["--trial-steps", str(options.trial_steps)]
    storage = [] if options.storage is None else ["--storage", options.storage]
    words = [
        "widestream", "tune", options.recipe, *options.changes, "--trials", str(options.trials), *steps, *storage,
        "--interval", options.space.interval, "--sampler", options.space.sampler, "--seed", str(options.space.seed),
        "--workers", str(options.workers), "--out", str(options.folder),
    ]  # fmt: skip
    return shlex.join(words)


def best_settings(record: dict[str, Any]) -> dict[str, float]:
    """Settings of the best trial, rounded, by their key in a recipe."""
    best = record["trials"][record["best"]]["settings"]
    return {KEYS[name]: float(f"{value:.{DIGITS}g}") for name, value in best.items()}


def recipe_text(record: dict[str, Any]) -> str:
    """The best settings as a recipe that extends the trial model's."""
    values: dict[str, Any] = {}
    for key, value in best_settings(record).items():
        *parents, last = key.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    name = record["recipe"].removesuffix(".yaml")
    base = name if name in recipe_names() else str(find_recipe(record["recipe"]).resolve())
    head = {"extends": base, "name": f"tuned/{Path(name).name}"}
    comments = "".join(f"# {line}\n" for line in (*sentences(record), record["command"]))
    return comments + yaml.safe_dump(head | values, sort_keys=False)
