"""The colours and letters of all figures, light and dark; one mechanism for pages and files.

A specification names its colours as CSS variables (`var(--ink)`). A page defines them, so that a figure follows the
theme at once, on screen and in print; for a file of its own `in_theme` puts the values in their place.
"""

import json
import math
import re
from typing import Any

THEMES = {
    "light": {
        "paper": "#ffffff", "ink": "#1c1f23", "soft": "#5d646d", "rule": "#e4e6e9", "panel": "#f6f7f8",
        "warn": "#8a4b00", "warn-paper": "#fff4e3",
        "s0": "#0067a8", "s1": "#c2500a", "s2": "#00805c", "s3": "#a4437f", "s4": "#8a6a00", "s5": "#5a5f66",
    },
    "dark": {
        "paper": "#15181c", "ink": "#e8eaed", "soft": "#a0a7b0", "rule": "#2b3036", "panel": "#1c2025",
        "warn": "#ffc46b", "warn-paper": "#33260f",
        "s0": "#5fb2f2", "s1": "#ff9152", "s2": "#46c9a0", "s3": "#e39bc8", "s4": "#e0bd45", "s5": "#b3b9c1",
    },
}  # fmt: skip
"""CSS variables by theme. s0, s1, ... are the series: blue and vermilion first, told apart by every kind of eye."""

COLOURS = 6
"""Series beyond so many have a dash of their own."""
DASHES: tuple[list[int], ...] = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 6])
"""Solid first; 30 models can be told apart by colour and dash."""
BROKEN = len(DASHES)
"""Number of the dash of runs that diverged."""
GREY = 5
"""The colour of what stands behind the others: a reference among many, a difference that is not seen."""

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": FONT,
    "aria": False,  # the element around a figure says what it shows
    "view": {"stroke": None},
    "title": {"color": "var(--soft)", "fontSize": 13, "fontWeight": "normal", "anchor": "start", "offset": 10},
    "header": {"labelColor": "var(--ink)", "labelFontSize": 13, "labelAnchor": "start", "title": None},
    "axis": {
        "labelColor": "var(--soft)", "titleColor": "var(--soft)", "labelFontSize": 12, "titleFontSize": 13,
        "titleFontWeight": "normal", "gridColor": "var(--rule)", "domainColor": "var(--soft)",
        "tickColor": "var(--soft)", "tickSize": 4,
    },
    "axisY": {"domain": False, "ticks": False, "labelPadding": 8},
    "axisX": {"titleAnchor": "end", "labelFlush": True, "labelPadding": 3},
}  # fmt: skip
"""What all specifications share."""


NUMBERS = "abs(datum.value) >= 1e5 ? replace(format(datum.value, '.3~s'), 'G', 'B') : format(datum.value, '.6~r')"
"""How axes write numbers: whole as far as they are short, else with k, M, B, T."""


def log_numbers(low: float, high: float) -> str:
    """How a logarithmic axis writes numbers: few of them, and round ones, the longer the rounder."""
    decades = math.log10(high / low)
    digits = [1] if decades > 3 else [1, 3] if decades > 2 else [1, 2, 5] if decades > 0.7 else [*range(1, 10)]
    digit = "round(datum.value / pow(10, floor(log(datum.value) / LN10 + 1e-9)))"
    return f"indexof({digits}, {digit}) < 0 ? '' : {NUMBERS}"


def css_variables(theme: str) -> str:
    """The CSS variables of a theme."""
    return "".join(f"--{name}:{value};" for name, value in THEMES[theme].items())


def in_theme(spec: dict[str, Any], theme: str) -> dict[str, Any]:
    """A specification with a theme's colours in place of CSS variables."""
    values = THEMES[theme]
    return json.loads(re.sub(r"var\(--([\w-]+)\)", lambda found: values[found[1]], json.dumps(spec)))


def colour_scale() -> dict[str, Any]:
    """Series number (less what its dash says) to colour."""
    return {"domain": [*range(COLOURS)], "range": [f"var(--s{number})" for number in range(COLOURS)]}


def dash_scale() -> dict[str, Any]:
    """Dash number to dash."""
    return {"domain": [*range(BROKEN + 1)], "range": [*DASHES, [5, 4]]}


def look(number: int) -> tuple[int, int]:
    """Colour and dash of a series."""
    return number % COLOURS, number // COLOURS % len(DASHES)
