"""The zoo: every residual stream at one small size, on the same batches, and the search for its learning rate."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from widestream.errors import UserError
from widestream.recipe import load_recipe
from widestream.recipe.load import recipe_folder, recipe_names
from widestream.report.search_record import load_search
from widestream.runs.folder import METRICS, read_done
from widestream.runs.pool import Job, run_jobs
from widestream.study.demo import prepare_data

REFERENCE = "zoo/transformer"
RATES = (0.006, 0.012, 0.024)
"""Peak learning rates of the search, the same for all."""
SEARCH_STEPS = 100
SEARCH_WINDOWS = 128
"""Held-out windows by which the rates are judged."""
SEARCH_SEED = 100
"""Of weights and batches; the zoo itself does not use it."""
TITLE = "Every residual stream at the beginning of training"


@dataclass(frozen=True, kw_only=True, slots=True)
class ZooOptions:
    """What can be changed about the zoo."""

    recipes: tuple[str, ...] = ()
    """Names or paths; default: all of recipes/zoo. The transformer is always among them."""
    folder: Path = Path("runs/zoo")
    """The runs and the report are written here."""
    data: Path = Path("runs/demo/data")
    """Prepared folder; where it does not exist the demo's data is prepared there."""
    record: Path | None = None
    """The search's record; default: recipes/zoo/search.json."""
    seeds: int = 1
    """Runs of each model; seed s fixes both weights and batches."""
    steps: int | None = None
    """Optimizer steps of each run; default: the recipes'."""
    workers: int | None = None
    """Runs at a time; default: one a CPU."""

    def __post_init__(self):
        for name in ("seeds", "steps", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"The zoo needs at least one of --{name}, not {value}.")

    @property
    def search_record(self) -> Path:
        """Where the search's record lies."""
        return self.record or recipe_folder() / "zoo" / "search.json"


def zoo_recipes() -> list[str]:
    """Names of the shipped recipes that make the zoo, the reference first."""
    names = [name for name in recipe_names() if name.startswith("zoo/") and name.count("/") == 1]
    return [REFERENCE, *(name for name in names if name != REFERENCE)]


def chosen_recipes(options: ZooOptions) -> dict[str, str]:
    """Recipes by label, the last part of their names.

    Raises:
        UserError: no such recipe, or two of one label.
    """
    recipes = dict.fromkeys((REFERENCE, *options.recipes)) if options.recipes else zoo_recipes()
    found: dict[str, str] = {}
    for recipe in recipes:
        label = str(load_recipe(recipe).name or recipe).rsplit("/", 1)[-1].removesuffix(".yaml")
        if label in found:
            raise UserError(f"{found[label]} and {recipe} are both called {label}; give one of them another `name`.")
        found[label] = recipe
    return found


def run_zoo(options: ZooOptions) -> Path:
    """Train all models, or what an interrupted zoo has left to do, and write report and picture.

    Returns:
        The report's path.
    """
    from widestream.report import print_table, write_picture, write_report

    recipes = chosen_recipes(options)
    _prepare(options.data)
    jobs = [
        _job(options, recipe, options.folder / f"{label}-seed{seed}", seed, options.steps)
        for seed in range(options.seeds)
        for label, recipe in recipes.items()
    ]
    run_jobs(jobs, options.workers or os.cpu_count() or 1, may_diverge=True)
    report = options.folder / "report.html"
    record = options.search_record
    shown = [job.folder for job in jobs if _evaluated(job.folder)]
    comparison = write_report(shown, report, search=record if record.is_file() else None, title=TITLE)
    print_table(comparison)
    for job in jobs:
        if job.diverged:
            print(f"{job.folder} diverged at step {job.steps_done}.")
    if len(comparison.groups) > 1:
        write_picture(comparison, options.folder / "zoo")
    print(f"Report: {report}")
    return report


def search_rates(options: ZooOptions) -> Path:
    """Train every model at every rate of the search and enter the results into the record.

    Rows of models that are not searched now stay as they are.

    Returns:
        The record's path.
    """
    recipes = chosen_recipes(options)
    _prepare(options.data)
    steps = options.steps or SEARCH_STEPS
    trials = {
        (label, rate): _job(
            options, recipe, options.folder / f"{label}-{rate:g}", SEARCH_SEED, steps,
            (f"optimizer.lr={rate}", f"train.eval_every={steps}", f"train.save_every={steps}",
             f"train.eval_windows={SEARCH_WINDOWS}", "train.final_eval=windows"),
        )
        for label, recipe in recipes.items()
        for rate in RATES
    }  # fmt: skip
    run_jobs(list(trials.values()), options.workers or os.cpu_count() or 1, may_diverge=True)
    record = options.search_record
    rows = [row for row in _rows(record) if row["model"] not in recipes]
    rows += [_trial(label, rate, job) for (label, rate), job in trials.items()]
    rows.sort(key=lambda row: (str(row["model"]), row["lr"]))
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"command": "widestream zoo --search", "rows": rows}, indent=1) + "\n")
    for label, trials_of in load_search(record).models.items():
        best = next((f"{trial.lr:g}" for trial in trials_of if trial.chosen), "none: all diverged")
        print(f"{label}: best peak rate {best}")
    return record


def _prepare(data: Path) -> None:
    if not (data / "manifest.json").is_file():
        if data.name != "data":
            raise UserError(
                f"{data} holds no prepared data; make it with `widestream data prepare`, or leave --data out."
            )
        prepare_data(data.parent)


def _job(options: ZooOptions, recipe: str, folder: Path, seed: int, steps: int | None, more: Iterable[str] = ()) -> Job:
    changes = [f"train.seed={seed}", f"data.seed={seed}", f"data.path={options.data}", *more]
    if steps is not None:
        changes.append(f"train.steps={steps}")
    planned = load_recipe(recipe, changes).train.steps
    if planned is None:
        raise UserError(f"{recipe} gives train.tokens; recipes of the zoo need train.steps.")
    return Job(recipe=recipe, changes=tuple(changes), folder=folder, steps=planned)


def _trial(label: str, rate: float, job: Job) -> dict[str, object]:
    """A row of the record, as `report.search` reads it."""
    done = read_done(job.folder) if job.done else None
    return {
        "model": label,
        "lr": rate,
        "seed": SEARCH_SEED,
        "steps": done["step"] if done else None,
        "heldout_loss": done["heldout"]["loss"] if done else None,
        "diverged": job.diverged,
    }


def _rows(record: Path) -> list[dict[str, object]]:
    """Rows that the record holds already.

    Raises:
        UserError: there is a record and it cannot be read.
    """
    if not record.is_file():
        return []
    load_search(record)
    return json.loads(record.read_bytes())["rows"]


def _evaluated(folder: Path) -> bool:
    """Whether a run got as far as its first evaluation."""
    log = folder / METRICS
    return log.is_file() and b'"kind": "eval"' in log.read_bytes()
