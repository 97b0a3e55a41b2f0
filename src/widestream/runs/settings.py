"""The recipes of many runs side by side: their settings by dotted key, what differs, and runs chosen by pattern."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from widestream.recipe.data import DataConfig
from widestream.recipe.model import ModelConfig
from widestream.recipe.train import OptimizerConfig, ScheduleConfig, TrainConfig
from widestream.runs.folder import flatten

BOOKKEEPING = frozenset(
    {
        "name",
        "description",
        "data.path",
        "train.log_every",
        "train.eval_every",
        "train.save_every",
        "train.keep",
        "train.tensorboard",
        "train.wandb",
        "train.trackio",
        "train.seed",
        "data.seed",
    }
)
"""Keys of a configuration that do not change what is learned, or are the seeds, which are averaged over. The data are
told apart by their fingerprints."""

_SECTIONS = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
}


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe by dotted key. What an older version did not write down yet has its default."""
    defaults = {
        f"{section}.{one.name}": one.default
        for section, kind in _SECTIONS.items()
        for one in fields(kind)
        if one.default is not MISSING
    }
    return defaults | flatten(dict(config))


def differing(flat: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Keys that differ between settings, sorted, with their value by label; seeds and bookkeeping left out.

    Labels whose settings have no such key are left out.
    """
    found = {}
    for key in sorted({key for one in flat.values() for key in one} - BOOKKEEPING):
        values = {label: one[key] for label, one in flat.items() if key in one}
        if len(values) < len(flat) or len({repr(value) for value in values.values()}) > 1:
            found[key] = values
    return found


def plain(value: object) -> str:
    """A value of a configuration as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, list | dict):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def chosen(pattern: str, names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a pattern means a run.

    Args:
        pattern: what one of its names, its folder or the folder's path is like, or `key=value` of the recipe; with the
            wildcards of a shell (`*`, `?`, `[ab]`) in names and values.
        names: what the run goes by.
        folder: where it lies.
        config: its recipe.
    """
    if any(fnmatchcase(name, pattern) for name in (*names, folder.name, str(folder), str(folder.resolve()))):
        return True
    key, equals, wanted = pattern.partition("=")
    flat = settings(config)
    return bool(equals) and key in flat and _like(flat[key], wanted)


def _like(value: object, wanted: str) -> bool:
    """Whether a setting is what was asked for, by its words or, of a number, by its value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(wanted) == value
        except ValueError:
            pass
    return fnmatchcase(plain(value), wanted)
