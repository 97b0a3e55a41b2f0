"""What a user can put right is one exception; the command line turns it into one sentence and exit code 2."""

import difflib
import signal
from collections import Counter
from collections.abc import Iterable

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a process that was told to end by SIGTERM and left everything in order, as shells have it: 143."""


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one clear sentence that says how to mend it."""


def shown(value: object, most: int = 80) -> str:
    """A value as a message shows it: on one line, without characters that a terminal obeys, cut where it is long."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(
        letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[: min(most, len(text)) + 1]
    )
    return text if len(text) <= most else f"{text[: most - 1]}…"


_LONGEST = 100
"""Letters of a name that are compared with known ones."""
_MOST = 40
"""Known names that a message lists one by one."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """An unknown name, with the nearest known one, or with all of them where none is near: many by folder, up to forty.

    Args:
        what: what is unknown, as the sentence shall say it; for example `key model.numlayers`.
        name: the name as given.
        known: the names that exist.
    """
    known = list(known)
    what, name = shown(what), name[:_LONGEST]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if not near:
        listed = _in_folders(known)
        more = f" and {len(listed) - _MOST:,} more" if len(listed) > _MOST else ""
        return UserError(f"Unknown {what}; known are: {', '.join(listed[:_MOST])}{more}.")
    # Equally near ones are told apart by how long they agree from the start.
    best = max(near, key=lambda other: (difflib.SequenceMatcher(None, other, name).ratio(), _agreement(other, name)))
    return UserError(f"Unknown {what}; did you mean {best}?")


def _in_folders(known: list[str]) -> list[str]:
    """Names as they are listed: where they are many, those of a folder as one."""
    if len(known) <= _MOST:
        return known
    folders = Counter(name.rpartition("/")[0] for name in known if "/" in name)
    return [name for name in known if "/" not in name] + [f"{folder}/* ({n})" for folder, n in folders.items()]


def _agreement(a: str, b: str) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
