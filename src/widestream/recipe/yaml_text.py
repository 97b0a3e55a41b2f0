"""YAML as recipes and studies are written: strict, plain values only, of bounded size.

Beyond `yaml.safe_load`: a key given twice is an error with its line; there are no dates, no base 60 or 8, and no `yes`
for true (YAML 1.2); a number remembers how it was written, for where a text is wanted (`name=1.10`); what does not
look like YAML, is nested too deeply or grows without bound is one sentence.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from widestream.errors import UserError, shown

LARGEST = 1 << 20
"""Bytes of a file at most."""
MOST_VALUES = 100_000
"""Values of a file at most, aliases counted as often as they stand for something."""
MOST_DIGITS = 40
"""A whole number with more digits stays text: no setting is so large, and long ones take long to read."""


class Whole(int):
    """A whole number that knows how it was written."""

    text: str


class Decimal(float):
    """A number that knows how it was written."""

    text: str


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, without the constructs that recipes have no use for."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 (PyYAML's own way to say it)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file, which may be empty.

    Raises:
        UserError: the file cannot be read, is too large, holds something else, or is not valid YAML; names the line.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if len(text) > LARGEST:
        raise UserError(f"{path} holds more than a million bytes; a recipe is smaller.")
    try:
        values = _load(text)
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path} must be a mapping of keys to values.")
    return values


def parse_value(text: str) -> Any:
    """One value, as it stands behind `key=`.

    Raises:
        UserError: it is not valid YAML.
    """
    return _load(text)


def _tree(value: Any) -> Any:
    """The same values with nothing in common: what YAML's aliases share becomes a copy each."""
    left = MOST_VALUES

    def copied(value: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise yaml.YAMLError(f"it stands for more than {MOST_VALUES:,} values")
        if isinstance(value, dict):
            return {key: copied(entry) for key, entry in value.items()}
        return [copied(entry) for entry in value] if isinstance(value, list) else value

    return copied(value)


def _load(text: str | bytes) -> Any:
    try:
        return _tree(yaml.load(text, _Loader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"is not valid YAML: {shown(_in_words(error), 300)}") from None
    except RecursionError:
        raise UserError("is not valid YAML: it is nested too deeply.") from None
    except (ValueError, TypeError) as error:  # such as `!!int x`, or a list for a key
        raise UserError(f"is not valid YAML: {shown(str(error), 300)}") from None


def _in_words(error: Exception) -> str:
    """What is wrong, and in which line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    context = getattr(error, "context", None)
    what = ", ".join(filter(None, (context, getattr(error, "problem", None))))
    return f"{what} (line {mark.line + 1}, column {mark.column + 1})"


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Any:
    """A mapping with every key once."""
    seen: dict[Any, yaml.Node] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise yaml.constructor.ConstructorError(None, None, "a key is a name or a number", key_node.start_mark)
        if key == "<<":
            problem = "merge keys (<<) are not known; build on another file with `extends`"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        if key in seen:
            first = seen[key].start_mark.line + 1
            problem = f"the key {key} stands here again, after line {first}; put both into one"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen[key] = key_node
    yield (values := {})
    values.update(
        {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(seen, node.value, strict=True)}
    )


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int | str:
    text = str(loader.construct_scalar(node))
    if len(text) > MOST_DIGITS:
        return text
    number = Whole(text.replace("_", ""))
    number.text = text
    return number


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> float | str:
    text = str(loader.construct_scalar(node))
    if len(text) > MOST_DIGITS:
        return text
    number = Decimal(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    number.text = text
    return number


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


_resolve("null", r"~|null|Null|NULL|", "~nN\0")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])
_resolve("bool", r"true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789")
_DIGITS, _EXPONENT = r"[0-9][0-9_]*", r"[eE][-+]?[0-9]+"
_resolve("float", rf"[-+]?(?:\.[0-9]+|{_DIGITS}\.[0-9]*)(?:{_EXPONENT})?|[-+]?{_DIGITS}{_EXPONENT}", "-+.0123456789")
_resolve("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)
