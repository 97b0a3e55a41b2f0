"""Whether text can be had back from its ids, for tokenizers that do not promise it.

Two things can happen to text on its way. Characters are **lost** where nothing in the ids speaks of them: the
vocabulary cannot spell them, and they were dropped or became the unknown token. And text is **changed** where another
text has the same ids: in small letters, without accents, in other white space. A text is lost in part if letters of it
are not in what its ids spell, when neither capitals, accents, white space, controls nor other forms of the same
character (NFKD) count. It is changed if what its ids spell is not the text, but for one space in front, which many
tokenizers add or drop.

Spelling takes a third as long as encoding, so not every text is looked at. The model of a tokenizer loses a character
by making the unknown token, or, without one, in silence; what stands before the model drops characters that `_drops`
finds one by one. Where any of these can have happened, the text is looked at; so are the first texts, and of the others
one in sixteen, by a hash. So no lost character goes unseen, and hardly a change.
"""

import functools
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from widestream.data.fast_bpe import BYTE_SYMBOLS

if TYPE_CHECKING:
    import tokenizers

FIRST = 100
"""Texts at the beginning that are all looked at."""
_ONE_OF = 16
_ALL = 0x110000
_CONTROLS = ("Cc", "Cf")
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True, slots=True)
class Loss:
    """What the ids of one text do not tell."""

    characters: int = 0
    """Characters that are lost."""
    changed: bool = False
    """Whether what the ids spell is another text."""
    examples: str = ""
    """Some of the lost characters."""


NOTHING = Loss()


def is_sampled(number: int, digest: int) -> bool:
    """Whether a text is looked at whatever is in it.

    Args:
        number: of the text in its corpus, from 0.
        digest: a hash of it.
    """
    return number < FIRST or digest % _ONE_OF == 0


def compare(text: str, spelled: str) -> Loss:
    """What of `text` is not in what its ids spell."""
    if spelled in (text, f" {text}") or text == f" {spelled}":
        return NOTHING
    here, there = _codes(text), _codes(spelled)
    found, places = np.unique(np.concatenate((here, there)), return_inverse=True)
    counts = [np.bincount(part, minlength=found.size) for part in np.split(places, [here.size])]
    lost = np.maximum(counts[0] - counts[1], 0)
    return Loss(int(lost.sum()), True, "".join(map(chr, found[lost > 0][:8].tolist())))


def _codes(text: str) -> np.ndarray:
    """Code points of a text in the form in which texts are compared, without those that do not count."""
    codes = np.frombuffer(unicodedata.normalize("NFKD", text.casefold()).encode("utf-32-le"), dtype="<u4")
    return codes[~_ignored()[codes]]


@functools.cache
def _ignored() -> np.ndarray:
    """Bool [code points]: white space, controls, accents of Latin and its like, marks that choose between forms."""
    table = np.zeros(_ALL, dtype=bool)
    table[[code for code in range(0x3001) if chr(code).isspace() or unicodedata.category(chr(code)) in _CONTROLS]] = (
        True
    )
    for first, last in ((0x300, 0x36F), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFD), (0xE0000, 0xE0FFF)):
        table[first : last + 1] = True
    return table


class RoundTrip:
    """The way to ids and back of one tokenizer of the `tokenizers` library."""

    def __init__(self, raw: dict[str, Any], library: "tokenizers.Tokenizer"):
        """Look at what may be lost.

        Args:
            raw: the JSON the library was made of.
            library: does not recognise special tokens in text.
        """
        from tokenizers import decoders

        model, self._library = raw["model"], library
        unknown = model.get("unk_token")
        found = library.token_to_id(unknown) if unknown is not None else model.get("unk_id")
        self._unknown: int | None = found
        vocabulary = library.get_vocab()
        self._byte_level = '"ByteLevel"' in json.dumps(raw.get("pre_tokenizer"))
        in_bytes = self._byte_level and vocabulary.keys() >= set(BYTE_SYMBOLS)
        in_bytes |= bool(model.get("byte_fallback")) and vocabulary.keys() >= set(_BYTE_TOKENS)
        self._in_silence = model.get("type") == "BPE" and self._unknown is None and not in_bytes
        self._bytes = decoders.ByteLevel()
        self._dropped = np.full(_ALL, -1, dtype=np.int8)
        """By code point: 1 if it is dropped in front of the model, 0 if not, -1 where it was not asked yet."""

    def losses(self, texts: Sequence[str], ids: Sequence[np.ndarray], sampled: Sequence[bool]) -> list[Loss]:
        """What each text loses; a text that was not looked at loses nothing."""
        losses = [NOTHING] * len(texts)
        looked_at: list[int] = []
        for index, (text, row, sample) in enumerate(zip(texts, ids, sampled, strict=True)):
            unknown = self._unknown is not None and bool((row == self._unknown).any())
            if sample or unknown or self._in_silence or self._is_dropped(text):
                looked_at.append(index)
        known = [ids[index][ids[index] != self._unknown].tolist() for index in looked_at]
        for index, spelled in zip(looked_at, self._library.decode_batch(known, skip_special_tokens=False), strict=True):
            losses[index] = compare(texts[index], spelled)
        return losses

    def _is_dropped(self, text: str) -> bool:
        """Whether a character of the text does not come as far as to the model."""
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        found = self._dropped[codes]
        if (found < 0).any():
            for code in np.unique(codes[found < 0]).tolist():
                self._dropped[code] = self._drops(chr(code))
            found = self._dropped[codes]
        return bool(found.any())

    def _drops(self, character: str) -> bool:
        text = f"a{character}a"
        normalizer, splitter = self._library.normalizer, self._library.pre_tokenizer
        come = text if normalizer is None else str(normalizer.normalize_str(text))
        if splitter is not None:
            pieces = [piece for piece, _ in splitter.pre_tokenize_str(come)]
            come = str(self._bytes.decode(pieces)) if self._byte_level else "".join(pieces)
        return compare(text, come).characters > 0
