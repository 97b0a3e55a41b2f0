"""Reading studies from YAML: one scale of them, their grids and folders of recipes made into arms."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from widestream.errors import UserError, unknown_name
from widestream.recipe.build import build
from widestream.recipe.load import RECIPES, Shipped
from widestream.recipe.yaml_text import read_yaml
from widestream.study.overwritten import names, refuse_overwritten
from widestream.study.spec import SCALES, Arm, Study

STUDIES = Shipped("study", "studies")
study_names, find_study = STUDIES.names, STUDIES.find


def load_study(name: str, scale: str = "cpu", seeds: int | None = None) -> Study:
    """Read a study at one scale.

    Args:
        name: path of a YAML file, or name of a shipped study.
        scale: one of `SCALES`.
        seeds: runs of every arm; default: the study's, which is 3 unless it says otherwise.

    Raises:
        UserError: no such study or scale, or the file is not a valid study; says what is wrong.
    """
    path = find_study(name)
    if scale not in SCALES:
        raise unknown_name(f"scale {scale!r}", scale, SCALES)
    try:
        return _build(path, read_yaml(path), scale, {} if seeds is None else {"seeds": seeds})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _build(path: Path, values: dict[str, Any], scale: str, changes: dict[str, Any]) -> Study:
    own = None if path.is_relative_to(STUDIES.folder) else path
    if isinstance(scales := values.get("scales"), list) and scale not in scales:
        raise UserError(f"The study {path.stem} has no scale {scale}; it has {', '.join(map(str, scales))}.")
    values = _given(_at_scale(values, scale)) | changes
    if values.get("evaluations") == "recipe":
        values["evaluations"] = None
    if isinstance(entries := values.get("arms"), dict):
        arms = [_arms(key, entry, scale) for key, entry in _expanded(entries, scale).items() if entry is not None]
        values["arms"] = list(itertools.chain(*arms))
    study = build(Study, values, "", "study", name=path.stem, scale=scale, file=own)
    refuse_overwritten(study)
    arms = tuple(replace(arm, settings=study.settings | arm.settings) for arm in study.arms)
    return replace(
        study, arms=arms, question=" ".join(study.question.split()), reference=study.reference or arms[0].name
    )


def _at_scale(value: Any, scale: str) -> Any:
    """The value with every choice between scales made; a choice that leaves this scale out is None."""
    if isinstance(value, Mapping):
        if value and all(key in SCALES for key in value):
            return _at_scale(value.get(scale), scale)
        return {key: _at_scale(entry, scale) for key, entry in value.items()}
    return [_at_scale(entry, scale) for entry in value] if isinstance(value, list) else value


def _given(value: Any) -> Any:
    """A mapping without keys that this scale leaves out, its own and those of what it has for search and analysis."""
    if not isinstance(value, dict):
        return value
    return {
        key: _given(entry) if key in ("search", "analysis") else entry
        for key, entry in value.items()
        if entry is not None
    }


def _expanded(entries: dict[str, Any], scale: str) -> dict[str, Any]:
    """Entries of arms, where a recipe `FOLDER/*` stands for all shipped recipes right there that have no entry yet."""
    whole: dict[str, Any] = {}
    for key, entry in entries.items():
        recipe = entry.get("recipe") if isinstance(entry, dict) else None
        if not isinstance(recipe, str) or not recipe.endswith("/*"):
            whole[key] = entry
            continue
        folder = recipe.removesuffix("/*").replace("{scale}", scale)
        recipes = [name for name in RECIPES.names() if name.rpartition("/")[0] == folder]
        if not recipes:
            raise UserError(f"Arm {key} stands for the shipped recipes in {folder}, and there are none.")
        for name in recipes:
            whole.setdefault(name.rpartition("/")[2], entry | {"recipe": name})
    return whole


def _arms(key: Any, values: Any, scale: str) -> list[Arm]:
    """The arms of one entry: one, or one for each point of its grid."""
    if not isinstance(key, str):
        raise UserError(f"The arm {key} must have a name of letters; put it into quotes: '{key}'.")
    entry = build(Arm, _given(values), f"arms.{key}", "study", name=key)
    grid = {name: points for name, points in entry.grid.items() if points is not None}
    if twice := [name for name in grid if names(entry.settings, name)]:
        raise UserError(f"Arm {key} has {twice[0]} in `set` and in `grid`; leave one of the two out.")
    arms = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        name = " ".join([key, *(f"{name.rpartition('.')[2]}={value}" for name, value in point.items())])
        recipe, settings = entry.recipe.replace("{scale}", scale), entry.settings | point
        arms.append(replace(entry, name=name, recipe=recipe, settings=settings, group=entry.group or key))
    return arms
