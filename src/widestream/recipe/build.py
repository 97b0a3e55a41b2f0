"""Plain dictionaries to frozen dataclasses and back: strict, with the nearest right name in every complaint."""

import dataclasses
import functools
import math
import types
import typing
import unicodedata
from collections.abc import Container
from pathlib import Path
from typing import Any, Literal, TypeVar

from widestream.errors import UserError, shown, unknown_name
from widestream.recipe.home import expand_home
from widestream.recipe.kinds import settings_class
from widestream.recipe.run import RunConfig
from widestream.recipe.stream import StreamConfig
from widestream.recipe.yaml_text import Decimal, Whole

Config = TypeVar("Config")
_TOO_LARGE = 2**63
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


def without_defaults(config: Any) -> dict[str, Any]:
    """The same without settings that are what they are by default; a `kind` is always there.

    A setting that comes new into a later version thus changes nothing for those who leave it alone.
    """
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            if inner := without_defaults(value):
                values[field.name] = inner
        elif field.name == "kind" or value != _default(field):
            values[field.name] = value
    return values


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


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
        raise UserError(f"{path or f'The {whole}'} must be a mapping of keys to values, not {shown(values)}.")
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
    hints = _hints(cls)
    given = {names[key]: (hints[names[key]], value, _join(path, key)) for key, value in values.items()}
    return cls(**own, **{name: _convert(*what, whole) for name, what in given.items()})


def keys_of(cls: Any) -> Container[str]:
    """The keys that a mapping in a file may have to become a `cls`."""
    return _keys(cls)[0]


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """Types of fields by name, looked up once: a manifest has an entry for each of very many shards."""
    return typing.get_type_hints(cls)


@functools.cache
def _keys(cls: Any) -> tuple[dict[str, str], Container[str]]:
    """Names of fields by their keys in a file, and the keys that have to be there."""
    if typing.is_typeddict(cls):
        return {key: key for key in _hints(cls)}, cls.__required_keys__
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
    """Check `value` against a type hint. A whole number may be written as 1e4, a text may look like a number."""
    if type(value) is hint and (value.isprintable() if hint is str else hint is int and abs(value) < _TOO_LARGE):
        return value  # the quick way for nearly all
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if hint is Any:
        return _plain(value)
    if (value is None and types.NoneType in options) or dataclasses.is_dataclass(value):
        return value
    for option in options:
        kind, inner = typing.get_origin(option), typing.get_args(option)
        if dataclasses.is_dataclass(option) or typing.is_typeddict(option):
            return build(typing.cast(type, option), value, path, whole)
        if kind is Literal:
            if value in inner:
                return value
            raise unknown_name(f"value {path}={shown(value)}", shown(value), map(str, inner))
        if kind in (list, tuple) and isinstance(value, list):
            return kind(_convert(inner[0], entry, f"{path}[{i}]", whole) for i, entry in enumerate(value))
        if kind is dict and isinstance(value, dict):
            return {key: _convert(inner[1], entry, _join(path, key), whole) for key, entry in value.items()}
        if option in (int, float) and (number := _number(option, value, path)) is not None:
            return number
        if option in (str, Path) and (text := _text(value, path)) is not None:
            return text if option is str else Path(expand_home(text))
        if option is bool and isinstance(value, bool):
            return value
    wanted = " or ".join(_WORDS.get(typing.get_origin(option) or option) or option.__name__ for option in options)
    raise UserError(f"{path} must be {wanted}, not {shown(repr(_plain(value)))}.")


def _number(kind: type, value: Any, path: str) -> int | float | None:
    """A number of the kind; None where `value` is none.

    Raises:
        UserError: it is not finite, or too large for any setting.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{path} is {shown(_plain(value))}; it must be a finite number.")
    if kind is int and abs(number) >= _TOO_LARGE:
        raise UserError(f"{path} is {shown(_plain(value))}; that is too large for any machine.")
    if kind is float:
        return number
    if isinstance(value, int):
        return int(value)
    return int(number) if number == int(number) else None


def _text(value: Any, path: str) -> str | None:
    """A text, or a number as it was written; None for anything else.

    Raises:
        UserError: it holds characters that no name or path has.
    """
    text = value if isinstance(value, str) else getattr(value, "text", None)
    if text is not None and any(
        unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t" for letter in text
    ):
        raise UserError(f"{path} holds control characters: {shown(text)}.")
    return text


def _plain(value: Any) -> Any:
    """A value without memory of how it was written."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    kinds = {Whole: int, Decimal: float}
    return kinds[type(value)](value) if type(value) in kinds else value
