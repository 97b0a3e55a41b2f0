"""Plain dictionaries to frozen dataclasses and back: strict, with the nearest right name in every complaint."""

import dataclasses
import types
import typing
from collections.abc import Container
from pathlib import Path
from typing import Any, Literal, TypeVar

from widestream.errors import UserError, unknown_name
from widestream.recipe.kinds import settings_class
from widestream.recipe.run import RunConfig
from widestream.recipe.stream import StreamConfig

Config = TypeVar("Config")
_WORDS = {list: "a list", tuple: "a list", dict: "a mapping of keys to values", Path: "a path", types.NoneType: "null"}


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Build a run's configuration.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type; names the key and the nearest right one.
    """
    return build(RunConfig, values, "")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration into nested dictionaries of plain values, ready for YAML; `from_dict` inverts it."""
    return dataclasses.asdict(config)


def build(cls: type[Config], values: Any, path: str, whole: str = "recipe", **own: Any) -> Config:
    """Build the dataclass `cls`, or a TypedDict, from `values`.

    A field has a type that YAML knows, or `Any`, `Path`, a literal, another dataclass, or a list, tuple, dictionary or
    union of these. Its key is its name, or what its metadata say is its `key`.

    Args:
        cls: what to build.
        values: from a file.
        path: the dotted place of `values` in the file.
        whole: what the file is, for messages.
        own: fields that are no keys of the file.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type; names the key and the nearest right one.
    """
    if not isinstance(values, dict):
        raise UserError(f"{path or f'The {whole}'} must be a mapping of keys to values, not {values!r}.")
    if cls is StreamConfig:
        cls = _settings_class(values, path)
    names, required = _keys(cls)
    names = {key: name for key, name in names.items() if name not in own}
    for key in values:
        if key not in names:
            raise unknown_name(f"key {_join(path, key)}", str(key), names)
    if missing := [_join(path, key) for key in names if key in required and key not in values]:
        command = f" or as {missing[0]}=VALUE" if whole == "recipe" else ""
        raise UserError(f"The {whole} lacks {missing[0]}; give it in the file{command}.")
    hints = typing.get_type_hints(cls)
    given = {names[key]: (hints[names[key]], value, _join(path, key)) for key, value in values.items()}
    return cls(**own, **{name: _convert(*what, whole) for name, what in given.items()})


def _keys(cls: Any) -> tuple[dict[str, str], Container[str]]:
    """Names of fields by their keys in a file, and the keys that have to be there."""
    if typing.is_typeddict(cls):
        return {key: key for key in typing.get_type_hints(cls)}, cls.__required_keys__
    fields = {field.metadata.get("key", field.name): field for field in dataclasses.fields(cls)}
    required = [key for key, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING]
    return {key: field.name for key, field in fields.items()}, required


def _settings_class(values: dict[str, Any], path: str) -> type:
    if not isinstance(values.get("kind"), str):
        raise UserError(f"The recipe lacks {_join(path, 'kind')}; for example {_join(path, 'kind')}=matrix.")
    return settings_class(values["kind"])


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _convert(hint: Any, value: Any, path: str, whole: str) -> Any:
    """Check `value` against a type hint; it converts int to float and YAML's `1e-3` (a string) to float."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if hint is Any or (value is None and types.NoneType in options) or dataclasses.is_dataclass(value):
        return value
    for option in options:
        kind, inner = typing.get_origin(option), typing.get_args(option)
        if dataclasses.is_dataclass(option) or typing.is_typeddict(option):
            return build(typing.cast(type, option), value, path, whole)
        if kind is Literal:
            if value in inner:
                return value
            raise unknown_name(f"value {path}={value}", str(value), map(str, inner))
        if kind in (list, tuple) and isinstance(value, list):
            return kind(_convert(inner[0], entry, f"{path}[{i}]", whole) for i, entry in enumerate(value))
        if kind is dict and isinstance(value, dict):
            return {key: _convert(inner[1], entry, _join(path, key), whole) for key, entry in value.items()}
        if option is float and (number := _number(value)) is not None:
            return number
        if option is Path and isinstance(value, str):
            return Path(value)
        if option in (int, str, bool) and type(value) is option:
            return value
    wanted = " or ".join(_WORDS.get(typing.get_origin(option) or option) or option.__name__ for option in options)
    raise UserError(f"{path} must be {wanted}, not {value!r}.")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
