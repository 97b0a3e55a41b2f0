"""Reference of a recipe's settings, from the dataclasses that recipes are built into."""

import dataclasses
import inspect
import types
import typing
from typing import Any, Literal

from sphinx.pycode import ModuleAnalyzer

from widestream.recipe import RunConfig
from widestream.recipe.kinds import OWN_KINDS, load_kind
from widestream.recipe.stream import StreamConfig

OPENING = """# Settings of a recipe

Every setting, its type, its default and its meaning. This page is made from the code that reads recipes when the
site is built. A setting is given in a recipe's YAML, or on the command line as `key.sub=value`; settings without a
default must be given.
"""


def recipe_page() -> str:
    """The page: a section for every mapping of a recipe, then one for every kind of stream."""
    sections = [OPENING, *_sections(RunConfig, "")]
    sections.append("## Streams\n\n`model.stream.kind` chooses one; what follows are the settings beside it.\n")
    sections += [_stream(kind) for kind in OWN_KINDS]
    return "\n".join(sections)


def _sections(cls: type, path: str) -> list[str]:
    """The table of a mapping, and behind it those of the mappings inside."""
    title = f"## `{path}`" if path else "## The recipe itself"
    inner = [(name, kind) for name, hint in typing.get_type_hints(cls).items() if (kind := _mapping(hint))]
    sections = [f"{title}\n\n{_first_paragraph(cls)}\n\n{_table(cls, path)}"]
    for name, kind in inner:
        if not issubclass(kind, StreamConfig):
            sections += _sections(kind, f"{path}.{name}" if path else name)
    return sections


def _stream(kind: str) -> str:
    cls = load_kind(kind)
    rows = _table(cls.Config, "model.stream", skip=("kind",))
    return f"### `{kind}`\n\n{_first_paragraph(cls)}\n\n{rows or 'No settings of its own.'}\n"


def _table(cls: type, path: str, skip: tuple[str, ...] = ()) -> str:
    """Rows of the settings of a dataclass; empty where there are none."""
    hints = typing.get_type_hints(cls)
    rows = []
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        key = f"{path}.{field.name}" if path else field.name
        kind = _mapping(hints[field.name])
        default = "" if kind and field.default is not None else _default(field)
        cells = (f"`{key}`", _type(hints[field.name]), default, _meaning(cls, field.name))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(["| setting | type | default | meaning |", "|---|---|---|---|", *rows, ""]) if rows else ""


def _mapping(hint: Any) -> type | None:
    """The dataclass that a setting is a mapping for, if it is one."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)  # pyright: ignore


def _type(hint: Any) -> str:
    """A type as one writes values of it: `int`, `null`, the words of a choice."""
    if hint is types.NoneType:
        return "null"
    if isinstance(hint, types.UnionType):
        return " or ".join(map(_type, typing.get_args(hint)))
    if typing.get_origin(hint) is Literal:
        return ", ".join(f"`{word}`" for word in map(_yaml, typing.get_args(hint)))
    if dataclasses.is_dataclass(hint):
        return "mapping"
    inner = [_type(option) for option in typing.get_args(hint) if option is not Ellipsis]
    origin = typing.get_origin(hint)
    if origin is dict:
        return f"mapping of {inner[0]} to {inner[1]}"
    if origin in (list, tuple):
        return f"list of {inner[0]}"
    return hint.__name__


def _default(field: Any) -> str:
    if field.default is field.default_factory is dataclasses.MISSING:
        return "*must be given*"
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list | tuple) or value == "":
        return {dict: "{}", list: "[]", tuple: "[]", str: '""'}[type(value)] if not value else str(list(value))
    return str(value)


def _meaning(cls: type, name: str) -> str:
    """The docstring under a field, in one line.

    Raises:
        LookupError: the field has none, in its class or in one that the class extends.
    """
    for owner in cls.__mro__:
        lines = ModuleAnalyzer.for_module(owner.__module__).find_attr_docs() if owner is not object else {}
        if found := lines.get((owner.__name__, name)):
            return _escaped(" ".join(" ".join(found).split()))
    raise LookupError(f"{cls.__module__}.{cls.__name__}.{name} has no docstring; write one under the field.")


def _first_paragraph(cls: type) -> str:
    return _escaped(" ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split()))


def _escaped(text: str) -> str:
    """Text in which signs of mathematics are no signs of Markdown; what stands in backticks stays."""
    parts = text.split("`")
    outside = [part.translate({ord(sign): "\\" + sign for sign in "*_[]<>"}) for part in parts[::2]]
    inside = [f"`{part}`" for part in parts[1::2]]
    return "".join(word for pair in zip(outside, [*inside, ""], strict=True) for word in pair)
