"""Long names in little room: cut in the middle, and never so that two of them look alike."""

from collections.abc import Iterable


def shorten(names: Iterable[str], most: int) -> dict[str, str]:
    """Names of at most `most` letters, by the whole name; those that fit stay as they are.

    A long one keeps its start and its end. Where that makes two alike, the stretch in which they differ takes the place
    of the start; where even that is too long, they are numbered.
    """
    names = list(dict.fromkeys(names))
    short = {name: _ends(name, most) for name in names}
    for alike in _alike(short):
        short |= {name: _differing(name, alike, most) for name in alike if len(name) > most}
    for alike in _alike(short):
        short |= {name: f"{_ends(name, most - 4)} #{number}" for number, name in enumerate(alike, 1)}
    return short


def _alike(short: dict[str, str]) -> list[list[str]]:
    """Names that share a short form."""
    groups: dict[str, list[str]] = {}
    for name, form in short.items():
        groups.setdefault(form, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _ends(name: str, most: int) -> str:
    if len(name) <= most:
        return name
    tail = (most - 1) * 3 // 5
    return f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"


def _differing(name: str, alike: list[str], most: int) -> str:
    """The stretch that tells a name from those that look like it, and as much of the start as there is room for."""
    others = [other for other in alike if other != name]
    first = min(_shared(name, other) for other in others)
    last = min(_shared(name[::-1], other[::-1]) for other in others)
    stretch = name[first : max(len(name) - last, first + 1)][: most - 2]
    return f"{name[: most - 2 - len(stretch)]}…{stretch}…"


def _shared(one: str, other: str) -> int:
    """How many letters two names share from the start."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
