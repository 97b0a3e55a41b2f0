"""Rows of metrics.jsonl as columns."""

import contextlib
import sys
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from widestream.errors import UserError
from widestream.runs.folder import flatten

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingImports]

ROWS = 4096
"""Rows that are made into arrays at once."""


class Columns(dict[str, np.ndarray]):
    """Arrays of equal length [rows] by name. `pandas.DataFrame(columns)` takes them as they are.

    Integers are int64, truth values bool; other numbers are float64, in which a missing value is nan. A column with
    text, or with anything else that is no number, is object.
    """

    def __repr__(self) -> str:
        rows = len(next(iter(self.values()), ()))
        return f"<{rows:,} rows of {', '.join(self) or 'nothing'}>"

    def to_pandas(self) -> "pandas.DataFrame":
        """The same as a data frame.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("pandas is not installed; pip install pandas, or use the arrays as they are.") from None
        return pandas.DataFrame(self)


def to_columns(rows: Iterable[dict[str, Any]]) -> Columns:
    """Columns for the keys of all rows, in the order in which they first occur; nested keys are joined by a dot.

    Rows are taken some at a time, so that of many rows no more than the columns lies in memory.
    """
    parts: dict[str, list[np.ndarray]] = {}
    left, before = iter(rows), 0
    while some := [*islice(left, ROWS)]:
        for name, values in _by_name(some).items():
            part = parts.setdefault(name, [_missing(before)] if before else [])
            part.append(_array(values))
        before += len(some)
        for part in parts.values():
            if (lacking := before - sum(map(len, part))) > 0:
                part.append(_missing(lacking))
    return Columns({name: _joined(part) for name, part in parts.items()})


def _by_name(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The values of every key in the order of the rows; None for a row without it.

    Nearly all rows are of a few forms. Rows of one form are turned into columns together, a good deal faster than one
    by one.
    """
    forms: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        forms.setdefault(tuple(row), []).append(place)
    columns: dict[str, list[Any]] = {}
    for form, places in forms.items():
        together = _unnested(form, [rows[place] for place in places])
        if together is None:
            return _one_by_one([flatten(row) for row in rows])
        for name, values in together.items():
            if len(forms) == 1:
                columns[name] = values
                continue
            column = columns.setdefault(name, [None] * len(rows))
            for place, value in zip(places, values, strict=True):
                column[place] = value
    return columns


def _unnested(form: tuple[str, ...], rows: list[dict[str, Any]]) -> dict[str, list[Any]] | None:
    """Columns of rows that have the same keys, as `flatten` names them; None where what is nested has not."""
    columns: dict[str, list[Any]] = {}
    for key, values in zip(form, zip(*(row.values() for row in rows), strict=True), strict=True):
        if dict not in set(map(type, values)):
            columns[key] = [*values]
            continue
        inner = {tuple(value) if type(value) is dict else None for value in values}
        first = inner.pop()
        below = None if inner or first is None else _unnested(first, [*values])
        if below is None:
            return None
        columns |= {f"{key}.{name}": column for name, column in below.items()}
    return columns


def _one_by_one(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _array(values: list[Any]) -> np.ndarray:
    """Values as an array; text and None, each once in memory, as objects."""
    kinds = set(map(type, values))
    if len(kinds) == 1 and kinds <= {bool, int}:
        return np.array(values)
    if kinds <= {bool, int, float, type(None)}:
        with contextlib.suppress(OverflowError):  # of a whole number that is no float
            return np.array(values, dtype=np.float64)  # None becomes nan
    column = np.empty(len(values), dtype=object)
    column[:] = [sys.intern(value) if type(value) is str else value for value in values]
    return column


def _missing(count: int) -> np.ndarray:
    return np.full(count, np.nan)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One array of several, of the kind that holds them all; in a column of objects what is missing is None."""
    kinds = {part.dtype for part in parts}
    if len(kinds) == 1:
        return np.concatenate(parts)
    if np.dtype(object) not in kinds:
        return np.concatenate([part.astype(np.float64) for part in parts])
    joined = np.concatenate([part.astype(object) for part in parts])
    joined[[type(value) is float and value != value for value in joined]] = None
    return joined
