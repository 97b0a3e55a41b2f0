"""Recipes on disk: YAML with `extends`, found by name from anywhere, changed by dotted `key.sub=value`."""

from pathlib import Path
from typing import Any

from widestream.errors import UserError, shown, unknown_name
from widestream.recipe.build import from_dict, keys_of
from widestream.recipe.home import expand_home
from widestream.recipe.kinds import settings_class
from widestream.recipe.run import RunConfig
from widestream.recipe.yaml_text import parse_value, read_yaml

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
        path, shipped = Path(expand_home(name)), self.folder / f"{name.removesuffix('.yaml')}.yaml"
        for file in (path, shipped):
            if is_file(file):
                return file
        missing = f"{self.what} {shown(name)!r}: no such file, and no shipped {self.what} of that name"
        raise unknown_name(missing, name, self.names())


RECIPES = Shipped("recipe", "recipes")
recipe_names = RECIPES.names


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path that exists, that of a run folder, or a shipped one."""
    of_run = Path(expand_home(name)) / "config.yaml"
    return of_run if is_file(of_run) else RECIPES.find(name)


def load_recipe(recipe: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a recipe.

    Where a file or an override gives the stream another `kind`, settings from files that the new kind does not know go
    with the old one; those that both know stay. An override always acts, in whatever order they stand, or is an error;
    of two for one key the last counts.

    Args:
        recipe: the path of a YAML file, or the name of a shipped recipe.
        overrides: `key.sub=value` each, the value in YAML; `extends=NAME` exchanges what the recipe builds on.

    Raises:
        UserError: no such recipe, not a valid one, or an override that does not fit.
    """
    pairs = dict(_parse_override(text) for text in _last_of_each(overrides))
    extends = pairs.pop("extends", None)
    values = _Files().read(find_recipe(str(recipe)), extends=extends)
    _forget_stale(values, pairs)
    for key, value in pairs.items():
        _assign(values, key, value)
    return from_dict(values)


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


class _Section(dict[str, Any]):
    """A mapping with a `kind` that took the place of another one."""

    stale: frozenset[str] = frozenset()
    """Keys that were given for an earlier kind."""


class _Files:
    """The files of one recipe, each read once however many build on it."""

    def __init__(self):
        self._whole: dict[Path, dict[str, Any]] = {}

    def read(self, path: Path, chain: tuple[Path, ...] = (), extends: Any = None) -> dict[str, Any]:
        """One file laid over what it extends. `extends` replaces the file's own."""
        path = path.resolve()
        if path in chain:
            raise UserError(f"{path} extends itself; remove one `extends`.")
        if len(chain) > 50:
            raise UserError(f"{path} stands at the end of more than 50 files that extend each other; join some.")
        if path not in self._whole:
            values = read_yaml(path)
            own = values.pop("extends", None)
            merged: dict[str, Any] = {}
            for parent in _parents(path, own if extends is None else extends):
                merged = _merge(merged, self.read(parent, (*chain, path)))
            self._whole[path] = _merge(merged, values)
        return self._whole[path]


def _parents(path: Path, extends: Any) -> list[Path]:
    """The files that one builds on: beside it, or found like any recipe."""
    names = [extends] if isinstance(extends, str) else extends or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"`extends` of {path} must be a recipe or a list of recipes, not {shown(extends)}.")
    beside = [path.parent / f"{name.removesuffix('.yaml')}.yaml" for name in names]
    return [file if is_file(file) else find_recipe(name) for name, file in zip(names, beside, strict=True)]


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` over `base`, mapping by mapping, in new mappings. Where the kind changes, the keys of `base` are stale."""
    merged = _Section(base)
    stale = getattr(base, "stale", frozenset())
    if "kind" in top and "kind" in base and top["kind"] != base["kind"]:
        stale = frozenset(base)
    merged.stale = (stale - top.keys()) | getattr(top, "stale", frozenset())
    for key, value in top.items():
        if isinstance(value, dict):
            old = merged.get(key)
            value = _merge(old if isinstance(old, dict) else {}, value)
        merged[key] = value
    return merged


def _forget_stale(values: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Take out of the stream's section what its last kind does not know and an earlier one was given."""
    model = values.get("model")
    stream = model.get("stream") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(stream, _Section):
        return
    kind = overrides.get("model.stream.kind", stream.get("kind"))
    stale = stream.stale if kind == stream.get("kind") else {*stream}
    known = keys_of(settings_class(kind)) if isinstance(kind, str) and stale else {}
    model["stream"] = {key: value for key, value in stream.items() if key not in stale or key in known}


def _last_of_each(overrides: list[str] | tuple[str, ...]) -> list[str]:
    """The overrides, of those for one key the last only.

    Raises:
        UserError: a whole section stands behind a key of its own, which it would undo.
    """
    last = {text.partition("=")[0].strip(): text for text in overrides}
    keys = list(dict.fromkeys(text.partition("=")[0].strip() for text in overrides))
    for i, key in enumerate(keys):
        if undone := [earlier for earlier in keys[:i] if earlier.startswith(f"{key}.")]:
            raise UserError(f"{shown(last[key])} would undo {shown(last[undone[0]])}; give the whole section first.")
    return [last[key] for key in keys]


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        example = "write it as key.sub=value, for example train.steps=100."
        raise UserError(f"Cannot read the override {shown(text)!r}; {example}")
    try:
        return key.strip(), parse_value(value)
    except UserError as error:
        raise UserError(f"The value of the override {shown(text)!r} {error}") from None


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UserError(f"Cannot set {shown(dotted)}: {shown(parent)} is a value, not a mapping.")
    place[last] = value
