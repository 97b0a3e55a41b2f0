"""The record of a learning-rate search, as the report shows it."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from widestream.errors import UserError, shown
from widestream.report.formats import listing
from widestream.runs.read import is_number

_FIELDS = ("model", "lr", "seed", "steps", "heldout_loss", "diverged")
_FITS: dict[str, Callable[[Any], bool]] = {
    "model": lambda value: isinstance(value, str) and bool(value.strip()),
    "lr": lambda value: is_number(value) and value > 0,
    "steps": lambda value: value is None or (type(value) is int and value >= 0),
    "heldout_loss": lambda value: value is None or type(value) in (int, float),  # one that is not finite is a result
    "diverged": lambda value: type(value) is bool,
}
"""What the fields of a row may hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """All runs of one model at one learning rate."""

    lr: float
    """Peak learning rate."""
    losses: tuple[float, ...]
    """Held-out losses of the runs that did not diverge."""
    runs: int
    """Runs, diverged ones too."""
    steps: tuple[int, ...]
    """Steps trained, each number once; a run that diverged may not know."""
    chosen: bool
    """Whether this is the model's best rate: lowest mean loss among the rates at which no run diverged."""

    @property
    def mean(self) -> float | None:
        """Mean held-out loss; None where some run diverged."""
        return fmean(self.losses) if len(self.losses) == self.runs else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A learning-rate search over several models."""

    source: Path
    """The file it was read from."""
    models: dict[str, tuple[Trial, ...]]
    """Trials of each model, by rate."""

    @property
    def sentence(self) -> str:
        """Whether all models had the same chances, in words."""
        grids = {name: _grid(trials) for name, trials in self.models.items()}
        first = next(iter(grids.values()))
        if len(grids) == 1:
            return f"One model was searched, at {first}."
        if len(set(grids.values())) == 1:
            return f"{listing(list(grids))} had the same grid: {first}."
        return "The grids differ: " + "; ".join(f"{name} had {grid}" for name, grid in grids.items()) + "."

    def remarks(self, used: dict[str, float | None]) -> list[str]:
        """What else a reader should know, given the peak rate at which each model was then trained."""
        best = {name: trial.lr for name, trials in self.models.items() for trial in trials if trial.chosen}
        known = {name: used[name] for name in best if name in used}
        remarks = [
            f"{name} was then trained at {lr if lr is None else f'{lr:g}'}, not at its best rate, {best[name]:g}."
            for name, lr in known.items()
            if lr != best[name]
        ]
        if known and not remarks:
            remarks.append("The runs compared here use the best rate of each.")
        remarks += [
            f"The best rate of {name} is the {side} tried: a better one may lie beyond."
            for name, trials in self.models.items()
            for side, trial in (("lowest", trials[0]), ("highest", trials[-1]))
            if len(trials) > 1 and trial.chosen
        ]
        return remarks


def load_search(path: str | Path) -> Search:
    """Read rows {model, lr, seed, steps, heldout_loss, diverged} from a JSON file, or the record of a study.

    The rows are a list or {"rows": list}; a study's are the trials of its arms.

    Raises:
        UserError: The file is missing, is no JSON, or a row lacks a field or has something else there.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"The search record {path} does not exist; give the JSON file that the search wrote."
        ) from error
    except ValueError as error:
        raise UserError(f"The search record {path} cannot be read as JSON.") from error
    try:
        rows = content.get("rows", _study_rows(content)) if isinstance(content, dict) else content
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no record of a study, or is damaged; give the file that it wrote.") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"The search record {path} holds no rows.")
    for number, row in enumerate(rows, start=1):
        missing = [field for field in _FIELDS if not isinstance(row, dict) or field not in row]
        if missing:
            raise UserError(f"Row {number} of the search record {path} has no {listing(missing)}.")
        if wrong := [field for field, fits in _FITS.items() if not fits(row[field])]:
            told = shown(repr(row[wrong[0]]))
            raise UserError(f"Row {number} of the search record {path} has {wrong[0]} {told}, which it cannot be.")
    names = dict.fromkeys(str(row["model"]) for row in rows)
    return Search(source=path, models={name: _trials([row for row in rows if row["model"] == name]) for name in names})


def _study_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Search runs in the record of a study; those without a result are left out."""
    rows = []
    for arm in record.get("arms", ()):
        for trial in arm.get("trials", ()):
            if trial["status"] in ("done", "diverged"):
                diverged = trial["status"] == "diverged"
                row = {"model": arm["name"], "lr": trial["lr"], "seed": None, "steps": trial["steps"]}
                rows.append(row | {"heldout_loss": trial["loss"], "diverged": diverged})
    return rows


def _trials(rows: Sequence[dict[str, Any]]) -> tuple[Trial, ...]:
    by_rate = {lr: [row for row in rows if row["lr"] == lr] for lr in sorted({row["lr"] for row in rows})}
    losses = {lr: tuple(row["heldout_loss"] for row in group if _sound(row)) for lr, group in by_rate.items()}
    whole = {lr: fmean(losses[lr]) for lr, group in by_rate.items() if len(losses[lr]) == len(group)}
    best = min(whole, key=lambda lr: whole[lr], default=None)
    return tuple(
        Trial(
            lr=lr,
            losses=losses[lr],
            runs=len(group),
            steps=tuple(sorted({row["steps"] for row in group if row["steps"] is not None})),
            chosen=lr == best,
        )
        for lr, group in by_rate.items()
    )


def _sound(row: dict[str, Any]) -> bool:
    return not row["diverged"] and row["heldout_loss"] is not None and math.isfinite(row["heldout_loss"])


def _grid(trials: Sequence[Trial]) -> str:
    """Rates, seeds and length of a search in words: the same words for the same grid."""
    rates = listing([f"{trial.lr:g}" for trial in trials])
    runs = sorted({trial.runs for trial in trials})
    steps = sorted({step for trial in trials for step in trial.steps})
    seeds = f"{runs[0]} seed{'s' if runs[0] > 1 else ''}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]} seeds"
    length = (
        f"{steps[0]:,} steps" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,} steps" if steps else "no steps"
    )
    return f"peak rates {rates}, {seeds} each, {length}"
