"""Plain dictionaries to frozen dataclasses and back: strict, with the nearest right name in every complaint."""

import dataclasses
import types
import typing
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from widestream.errors import UserError, unknown_name
from widestream.recipe.kinds import settings_class
from widestream.recipe.run import RunConfig
from widestream.recipe.stream import StreamConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Build a run's configuration.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type; names the key and the nearest right one.
    """
    return build(RunConfig, values, "")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration into nested dictionaries of plain values, ready for YAML; `from_dict` inverts it."""
    return {
        field.name: to_dict(value) if dataclasses.is_dataclass(value := getattr(config, field.name)) else value
        for field in dataclasses.fields(config)
    }


def build(cls: type[Config], values: Any, path: str) -> Config:
    """Build the dataclass `cls` from `values`; `path` is the dotted place of `values` in the recipe."""
    if not isinstance(values, dict):
        raise UserError(f"{path or 'The recipe'} must be a mapping of keys to values, not {values!r}.")
    if cls is StreamConfig:
        cls = _settings_class(values, path)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise unknown_name(f"key {_join(path, key)}", str(key), fields)
    missing = [name for name, field in fields.items() if _required(field) and name not in values]
    if missing:
        raise UserError(
            f"The recipe lacks {_join(path, missing[0])}; give it in the file or as {_join(path, missing[0])}=VALUE."
        )
    hints = typing.get_type_hints(cls)
    return cls(**{name: _convert(hints[name], value, _join(path, name)) for name, value in values.items()})


def _settings_class(values: dict[str, Any], path: str) -> type:
    if not isinstance(values.get("kind"), str):
        raise UserError(f"The recipe lacks {_join(path, 'kind')}; for example {_join(path, 'kind')}=matrix.")
    return settings_class(values["kind"])


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Check `value` against a type hint; it converts int to float and YAML's `1e-3` (a string) to float."""
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in options:
        return None
    for option in options:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return value
            raise unknown_name(f"value {path}={value}", str(value), map(str, typing.get_args(option)))
        if option is float and (number := _number(value)) is not None:
            return number
        if option in (int, str, bool) and type(value) is option:
            return value
    wanted = " or ".join("null" if option is types.NoneType else option.__name__ for option in options)
    raise UserError(f"{path} must be {wanted}, not {value!r}.")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
