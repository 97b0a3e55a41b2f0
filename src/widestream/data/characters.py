"""Sets of characters, and the quick question whether a text has one of them."""

import functools
import unicodedata
from collections.abc import Iterable

import numpy as np

_PLANES = (range(0x40000), range(0xE0000, 0xE1000))
"""Where Unicode has, or is to have, characters; beyond, up to the private planes, it has none."""
_PRIVATE = 0xF0000


class CharacterSet:
    """Characters beyond ASCII. A regular expression of so many ranges would read a few megabytes a second."""

    def __init__(self, characters: Iterable[int]):
        self._table = np.zeros(0x110000, dtype=bool)
        self._table[list(characters)] = True

    def touches(self, text: str) -> bool:
        """Whether one of the characters is in `text`."""
        if text.isascii():
            return False
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        return bool(self._table[codes].any())


def known_characters() -> list[int]:
    """Every character, assigned or not, of the planes that are not all empty or private; no surrogates."""
    return [code for plane in _PLANES for code in plane if not 0xD800 <= code < 0xE000]


@functools.cache
def unassigned_characters() -> CharacterSet:
    """What the Unicode of this Python has no characters for: other libraries may follow a newer one."""
    unassigned = {code for code in known_characters() if unicodedata.category(chr(code)) == "Cn"}
    return CharacterSet(unassigned | ({*range(0x40000, _PRIVATE)} - {*_PLANES[1]}))
