"""Gates: numbers that a stream computes of what is in it, token by token, and multiplies it with.

Of a stream of lanes they are the weights by which lanes are read, and written to; of any other what its write and read
put through a sigmoid, a softmax or a tanh, as far as it has a value for every token.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from widestream.lens.lanes import lane_coefficients
from widestream.lens.look import Seen
from widestream.streams.lanes.base import LaneBase

OPERATIONS = {"sigmoid": "sigmoid", "_softmax": "softmax", "tanh": "tanh"}
"""What makes a gate, by the names that torch gives it."""
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Least value, quartiles, largest value."""


@dataclass(frozen=True)
class Gate:
    """The values of a gate in a pass."""

    reader: str
    """In front of whom it was computed."""
    name: str
    """read or write of lanes, else the operation; numbered from the second of a name on."""
    values: Tensor
    """[tokens, entries]."""

    def spread(self) -> Tensor:
        """Least value, quartiles and largest value over tokens [5, entries]."""
        return _quantiles(self.values, 0)

    def over_all(self) -> list[float]:
        """The same over tokens and entries together."""
        return _quantiles(self.values.flatten(), 0).tolist()


def _quantiles(values: Tensor, axis: int) -> Tensor:
    order = values.sort(axis).values
    places = [round(place * (len(order) - 1)) for place in PLACES]
    return order[places]


@torch.no_grad()
def gates(seen: Seen) -> list[Gate]:
    """The gates of a stream in a pass, by reader; none where it has none, or none that depend on the token."""
    readers = list(dict.fromkeys(reader.whole.name for reader in seen.readers()))
    by_site = _of_lanes(seen) if isinstance(seen.model.stream, LaneBase) else _met(seen)
    found = []
    for reader, here in zip(readers, by_site, strict=False):
        names = Counter[str]()
        for name, values in here:
            names[name] += 1
            numbered = name if names[name] == 1 else f"{name}.{names[name]}"
            found.append(Gate(reader, numbered, values))
    return found


def _of_lanes(seen: Seen) -> list[list[tuple[str, Tensor]]]:
    """Weights of reading and of writing lanes, where they depend on the token."""
    stream = seen.model.stream
    assert isinstance(stream, LaneBase)
    return [
        [
            (name, weights.expand(*seen.tokens.shape, -1, -1).flatten(2).flatten(0, 1))
            for name, weights in (("read", mixing[..., : stream.segments, :]), ("write", write))
            if weights.ndim > 2
        ]
        for mixing, write in lane_coefficients(seen)
    ]


def _met(seen: Seen) -> list[list[tuple[str, Tensor]]]:
    """What a stream's exchanges put through the operations that make gates."""
    stream, state, found = seen.model.stream, seen.model.stream.empty(seen.context), []
    for site, exchanged in enumerate(seen.exchanges):
        written = exchanged.written
        parts = (written[0], written[1] if len(written) > 1 else None) if site == 0 else written[0]
        with _Watched(tuple(seen.tokens.shape)) as watched:
            state, _ = stream.exchange(site, state, parts)
        found.append(watched.met)
    return found


class _Watched(TorchDispatchMode):
    """Keeps the results of the operations that make gates, where they have a value for every token."""

    def __init__(self, tokens: tuple[int, ...]):
        super().__init__()
        self.tokens, self.met = tokens, list[tuple[str, Tensor]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and keep."""
        result = func(*args, **(kwargs or {}))
        name = OPERATIONS.get(func._schema.name.split("::")[1])
        if name is not None:
            self._keep(name, result)
        return result

    def _keep(self, name: str, result: Tensor) -> None:
        shape = tuple(result.shape)
        place = next((at for at in range(len(shape) - 1) if shape[at : at + 2] == self.tokens), None)
        if place is not None:
            values = result.movedim((place, place + 1), (0, 1)).flatten(0, 1)
            self.met.append((name, values.reshape(len(values), -1)))
