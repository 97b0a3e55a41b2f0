"""Recipes on disk: YAML with `extends`, found by name from anywhere, changed by dotted `key.sub=value`."""

from pathlib import Path
from typing import Any

import yaml

from widestream.errors import UserError, unknown_name
from widestream.recipe.build import from_dict
from widestream.recipe.run import RunConfig

_PACKAGE = Path(__file__).resolve().parent.parent


class Shipped:
    """YAML files that come with the package, found by name from anywhere.

    Attributes:
        what: they are, in a word.
        folder: where they lie: inside an installed package, or at the root of a checkout.
    """

    def __init__(self, what: str, folder: str):
        installed = _PACKAGE / folder
        self.what = what
        self.folder = installed if installed.is_dir() else _PACKAGE.parent.parent / folder

    def names(self) -> list[str]:
        """Their names, such as `paper/rmt-134m`."""
        return sorted(str(path.relative_to(self.folder).with_suffix("")) for path in self.folder.rglob("*.yaml"))

    def find(self, name: str) -> Path:
        """The file of that name: a path that exists, or a shipped one."""
        path, shipped = Path(name).expanduser(), self.folder / f"{name.removesuffix('.yaml')}.yaml"
        for file in (path, shipped):
            if file.is_file():
                return file
        missing = f"{self.what} {name!r}: no such file, and no shipped {self.what} of that name"
        raise unknown_name(missing, name, self.names())


RECIPES = Shipped("recipe", "recipes")
recipe_names, find_recipe = RECIPES.names, RECIPES.find


def load_recipe(recipe: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a recipe.

    Args:
        recipe: the path of a YAML file, or the name of a shipped recipe.
        overrides: `key.sub=value` each, the value in YAML; `extends=NAME` exchanges what the recipe builds on.

    Raises:
        UserError: no such recipe, not a valid one, or an override that does not fit.
    """
    pairs = [_parse_override(text) for text in overrides]
    extends = dict(pair for pair in pairs if pair[0] == "extends")
    values = _read(find_recipe(str(recipe)), chain=(), extends=extends.get("extends"))
    for key, value in pairs:
        if key != "extends":
            _assign(values, key, value)
    return from_dict(values)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file, which may be empty.

    Raises:
        UserError: it holds something else, or is not valid YAML.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must be a mapping of keys to values.")
    return values


def _read(path: Path, chain: tuple[Path, ...], extends: Any = None) -> dict[str, Any]:
    """One file laid over what it extends. `extends` replaces the file's own."""
    path = path.resolve()
    if path in chain:
        raise UserError(f"{path} extends itself; remove one `extends`.")
    values = read_yaml(path)
    own = values.pop("extends", None)
    parents = extends if extends is not None else own
    parents = [parents] if isinstance(parents, str) else parents or []
    if not isinstance(parents, list):
        raise UserError(f"`extends` of {path} must be a recipe or a list of recipes, not {parents!r}.")
    merged: dict[str, Any] = {}
    for parent in parents:
        beside = path.parent / f"{str(parent).removesuffix('.yaml')}.yaml"
        merged = _merge(merged, _read(beside if beside.is_file() else find_recipe(str(parent)), (*chain, path)))
    return _merge(merged, values)


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` over `base`, mapping by mapping. Another stream kind starts afresh, for fields are a kind's own."""
    if "kind" in top and "kind" in base and top["kind"] != base["kind"]:
        return dict(top)
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"Cannot read the override {text!r}; write it as key.sub=value, for example train.steps=100.")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"The value of the override {text!r} is not valid YAML.") from None


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UserError(f"Cannot set {dotted}: {parent} is a value, not a mapping.")
    if last == "kind" and place.get("kind") != value:
        place.clear()  # fields of one stream mean nothing to another
    place[last] = value
