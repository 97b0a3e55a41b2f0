"""Build, train, compare and understand transformer residual streams.

    open(folder)            a run folder as an object: recipe, metrics, model, tokenizer, samples (`RunFolder`);
                            of a folder of runs, a pattern or a list, all of them with one table (`Runs`)
    load_recipe(name)       a recipe, shipped or a file, with changes (`RunConfig`); `recipe_names()` lists the shipped
    build_model(config)     a new model (`Decoder`); `LanguageModel` makes it return logits
    residual(kind, ...)     a stream for a model of your own
    attach(model, kind)     a stream in place of the residual adds of a transformers model; `detach`, `attached_stream`;
                            `save_stream` and `load_stream` for its weights
    UserError               what all of these raise for what a user can mend: one sentence that says how

docs/reference/python.md shows them at work. What is not listed here may change. Importing the package loads nothing
heavy: a name is looked up when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from widestream.errors import UserError
from widestream.version import __version__

if TYPE_CHECKING:
    from widestream.host.attach import attach, attached_stream, detach
    from widestream.host.saved import load_stream, save_stream
    from widestream.host.stream import residual
    from widestream.model.build import build_model
    from widestream.model.decoder import Decoder
    from widestream.model.language_model import LanguageModel
    from widestream.recipe import RunConfig, load_recipe
    from widestream.recipe.load import recipe_names
    from widestream.runs.many import Runs
    from widestream.runs.many import open_run as open
    from widestream.runs.opened import RunFolder

__all__ = [
    "Decoder",
    "LanguageModel",
    "RunConfig",
    "RunFolder",
    "Runs",
    "UserError",
    "__version__",
    "attach",
    "attached_stream",
    "build_model",
    "detach",
    "load_recipe",
    "load_stream",
    "open",
    "recipe_names",
    "residual",
    "save_stream",
]

_PLACES = {
    "Decoder": "model.decoder:Decoder",
    "LanguageModel": "model.language_model:LanguageModel",
    "RunConfig": "recipe:RunConfig",
    "RunFolder": "runs.opened:RunFolder",
    "Runs": "runs.many:Runs",
    "attach": "host.attach:attach",
    "attached_stream": "host.attach:attached_stream",
    "build_model": "model.build:build_model",
    "detach": "host.attach:detach",
    "load_recipe": "recipe:load_recipe",
    "load_stream": "host.saved:load_stream",
    "open": "runs.many:open_run",
    "recipe_names": "recipe.load:recipe_names",
    "residual": "host.stream:residual",
    "save_stream": "host.saved:save_stream",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
