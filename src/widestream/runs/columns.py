"""Rows of metrics.jsonl as columns."""

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from widestream.errors import UserError
from widestream.runs.folder import flatten

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingImports]


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
    """Columns for the keys of all rows, in the order in which they first occur; nested keys are joined by a dot."""
    flat = [flatten(row) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    return Columns({name: _array([row.get(name) for row in flat]) for name in names})


def _array(values: list[Any]) -> np.ndarray:
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and kinds <= {bool, int}:
        return np.array(values)
    if kinds <= {bool, int, float, type(None)}:
        with contextlib.suppress(OverflowError):  # of a whole number that is no float
            return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
