"""Residual streams: the one part of the model that is swapped. One file per stream; base.py is the contract."""

import importlib
import pkgutil
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from widestream.errors import UserError, unknown_name

if TYPE_CHECKING:
    from widestream.streams.base import Stream


@cache
def own_kinds() -> dict[str, str]:
    """The kinds of this package: every stream class in it, by the default of its config's `kind`"""
    from widestream.streams.base import Stream

    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    found = {}
    for cls in classes:
        if issubclass(cls, Stream) and cls.__module__.startswith(__name__) and "Config" in vars(cls):
            found[cls.Config.__dataclass_fields__["kind"].default] = f"{cls.__module__}:{cls.__name__}"
    first = {"vector": 0, "matrix": 1}
    return {kind: found[kind] for kind in sorted(found, key=lambda kind: (first.get(kind, 2), kind))}


def kinds() -> dict[str, str]:
    """All kinds by name: those here, and those of installed packages (entry points of group widestream.streams)."""
    found = {point.name: point.value for point in entry_points(group="widestream.streams")}
    return found | own_kinds()


def stream_class(kind: str) -> "type[Stream]":
    """The class of a stream kind: a name from `kinds`, or `module:Class` of the user's own.

    A module of the user's own is also looked for in the working directory.

    Raises:
        UserError: unknown kind (suggests the nearest), or a module or class that cannot be found.
    """
    target = own_kinds().get(kind) or kinds().get(kind, kind)
    module, colon, name = target.partition(":")
    if not colon:
        raise unknown_name(f"stream kind {kind!r}", kind, [*kinds(), "module:Class of your own"])
    try:
        return getattr(_import(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"The stream {kind!r} cannot be loaded: {error}.") from error


def config_class(kind: str) -> type:
    """The configuration dataclass of a stream kind."""
    return stream_class(kind).Config


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # the module is there; something that it needs is not
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(here)
