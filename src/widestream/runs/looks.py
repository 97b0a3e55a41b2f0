"""What a run's monitor has seen of its stream: the rows of kind `stream` in metrics.jsonl (`train.watch_every`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a stream."""

    tokens: int
    """Training tokens seen until then."""
    values: Mapping[str, tuple[float, ...]]
    """What was measured (`lens.monitor.Health`): one number, or one for each site; nan for what was not finite."""


def look_of(row: Mapping[str, Any]) -> Look:
    """A row as a look; what is neither a number nor a list of numbers is left out.

    Raises:
        KeyError, TypeError, ValueError: it has no number of tokens.
    """
    values = {}
    for name, value in row.items():
        numbers = value if isinstance(value, list) else [value]
        if name not in ("step", "tokens") and numbers and all(map(_is_number_or_none, numbers)):
            values[name] = tuple(float("nan") if one is None else float(one) for one in numbers)
    return Look(tokens=int(row["tokens"]), values=values)


def _is_number_or_none(value: Any) -> bool:
    return value is None or type(value) in (int, float)
