"""Every HTML page: a template and its data. One file that loads nothing: its scripts and data lie in it. Light and
dark, for a phone as for a desk.

Templates hold words and markup and escape whatever they are given; Python gives them data.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from widestream.report.figures.drawing import Drawer
from widestream.report.figures.themes import css_variables
from widestream.report.formats import visible

if TYPE_CHECKING:
    from jinja2 import Environment


def render_page(template: str, **data: Any) -> str:
    """The page that a template (`templates/*.html`) makes of its data."""
    return _environment().get_template(template).render(data | {"drawer": Drawer()})


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("widestream.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["css_variables"] = css_variables
    return environment


def _finalize(value: Any) -> str:
    """Words of any origin without characters that a browser swallows; our own markup as it is."""
    return value if isinstance(value, Markup) else visible(str(value))
