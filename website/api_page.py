"""Reference of the public interface: an entry for each name of `widestream.__all__` and of `widestream.lens`."""

import inspect
import operator

import widestream
import widestream.lens

ORDER = (
    *("open", "RunFolder", "Runs", "load_recipe", "recipe_names", "RunConfig", "build_model", "Decoder"),
    *("LanguageModel", "residual", "attach", "detach", "attached_stream", "save_stream", "load_stream", "UserError"),
)
"""As one meets them."""


def api_page() -> str:
    """The page, for Sphinx's autodoc to fill in."""
    names = [name for name in widestream.__all__ if name != "__version__"]
    return (
        "# Names in Python\n\n"
        "Everything that `widestream.__all__` and `widestream.lens` list, from docstrings; what is not listed may "
        "change. [widestream from Python](python.md) and [the lens](../how-to/lens.md) show the names at work.\n"
        + "".join(map(_entry, sorted(names, key=lambda name: (*ORDER, name).index(name))))
        + "".join(_entry(f"lens.{name}") for name in widestream.lens.__all__)
    )


def _entry(name: str) -> str:
    directive = "autofunction:: {}"
    if inspect.isclass(operator.attrgetter(name)(widestream)):
        directive = "autoclass:: {}\n   :members:"
    return f"\n## `{name}`\n\n```{{eval-rst}}\n.. {directive.format(f'widestream.{name}')}\n```\n"
