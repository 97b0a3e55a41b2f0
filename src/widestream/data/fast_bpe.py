"""Byte-level BPE by `tiktoken`: the ids of `tokenizers` in a fraction of the time, or a reason why not.

`tokenizers` merges the pairs that a file lists, in the order of the list. `tiktoken` knows no pairs: it merges whatever
two neighbours make a token together, smallest id first. Both take the leftmost of equals. They come to the same ids if

1. the ids of what is made do not fall along the list, so that both orders are one; and
2. every token is made of its own bytes by the listed merges.

For a pair that `tiktoken` merges into t is a stretch over whose ends nothing was merged yet. So what happened inside is
what happens to the bytes of t alone, where only one pair is ever left at the end: by 2. the one that the list merges.

Vocabularies with `ignore_merges` (Llama 3) have tokens for which 2. does not hold. Both libraries take a word that is
such a token whole; for the merging it is enough then that the list has all pairs that make the token.
"""

import functools
import itertools
import re
import threading
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from widestream.data.characters import CharacterSet, unassigned_characters
from widestream.data.split_patterns import GPT2, KNOWN, unequal_characters

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_SYMBOLS = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}
"""The character that stands for each byte in a byte-level vocabulary, in the order of GPT-2's ids."""
_SPELLED = re.compile(f"[{re.escape(''.join(BYTE_SYMBOLS))}]+")

_SEPARATOR = "\0widestream\1"
"""Between texts that are encoded in one call. No proper beginning of it is an end of it, so neighbours cannot make
another one together; control characters do not combine with what follows."""
_MOST_ADDED = 64
"""Tokens to look for in every text, at most: above that it takes as long as encoding."""
PROVED = {"10896f53c1ea4a79abf65a6f4cdc0137c0c5635ad0d7fc4da6efc37d07855541"}
"""SHA-256 of files for which condition 2 was looked into once and for all, by a test: GPT-2's, as gpt2.py makes it."""
_SAMPLE = (
    "It's the WE'LL of 1234567 naïve façades:  \t\n\r\n  x\u00a0y\u3000東京タワー Ελληνικά हिन्दी e\u0301\u0327 ſ'ſ½Ⅷ٣",
    "def f(x):\n    return x**2  # ok\n\n\n<|endoftext|></s>[SEP]\x85\u180e\ufeff\0😀👩\u200d🔬\u2028"
    + "=" * 300
    + " " * 300,
    "",
)


class Unsuited(Exception):
    """This tokenizer is left to `tokenizers`; the message says why."""


class FastBpe:
    """Encodes as the tokenizer does that it was opened for. May be used by several threads at a time."""

    def __init__(
        self,
        make_encoding: Callable[[], "tiktoken.Encoding"],
        library: "tokenizers.Tokenizer",
        added: Sequence[str],
        unequal: CharacterSet | None,
    ):
        """Put together what `open` found.

        Args:
            make_encoding: makes the encoding, the separator its only special token.
            library: the same tokenizer, for what the encoding must not touch.
            added: strings that the library would take for added tokens.
            unequal: characters at which the two split differently.
        """
        self._make_encoding, self._library, self._added, self._unequal = make_encoding, library, added, unequal
        self.composes = library.normalizer is not None
        self._threads = threading.local()

    @property
    def _encoding(self) -> "tiktoken.Encoding":
        """This thread's own: two that use one spend half of their time on a lock in its regular expression."""
        if not hasattr(self._threads, "encoding"):
            self._threads.encoding = self._make_encoding()
        return self._threads.encoding

    @classmethod
    def open(cls, raw: dict[str, Any], library: "tokenizers.Tokenizer", proved: bool = False) -> "FastBpe":
        """The fast way to encode as `library` does.

        Args:
            raw: the JSON the library was made of.
            library: does not recognise special tokens in text.
            proved: the file is one of `PROVED`.

        Raises:
            Unsuited: there is none.
        """
        import tiktoken

        pattern = KNOWN.get(_split_pattern(raw.get("pre_tokenizer")) or "")
        if pattern is None:
            raise Unsuited("its pre_tokenizer is not one that is known here")
        if raw.get("normalizer") not in (None, {"type": "NFC"}):
            raise Unsuited("it has a normalizer")
        added = [token["content"] for token in raw["added_tokens"] if not token["special"]]
        if len(added) > _MOST_ADDED or not all(token.isascii() and token for token in added):
            raise Unsuited("it has added tokens that are not special")
        ranks = _ranks(raw["model"], None if proved else library)
        make = functools.partial(
            tiktoken.Encoding,
            "widestream",
            pat_str=pattern,
            mergeable_ranks=ranks,
            special_tokens={_SEPARATOR: max(ranks.values()) + 1},
        )
        fast = cls(make, library, added, unequal_characters())
        for text, ids in zip(_SAMPLE, fast.encode_batch(_SAMPLE), strict=True):
            if ids.tolist() != fast._slowly(text).tolist():
                raise Unsuited("tiktoken made other ids of a sample")
        return fast

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int64 [length]. One call of the library for all of them, so that threads seldom wait."""
        if not texts:
            return []
        ids = self._quickly(texts, {_SEPARATOR})
        if ids is not None:
            ends = np.flatnonzero(ids == self._encoding.max_token_value)
            if ends.size == len(texts) - 1:
                first, *others = np.split(ids, ends)
                return [first, *(row[1:] for row in others)]
        return [self._alone(text) for text in texts]  # something is unusual: one may hold the separator itself

    def _alone(self, text: str) -> np.ndarray:
        ids = self._quickly([text], set())
        return self._slowly(text) if ids is None else ids

    def _quickly(self, texts: Sequence[str], special: set[str]) -> np.ndarray | None:
        """Ids by `tiktoken` of all texts, the separator between them; None where some might be wrong."""
        joined = _SEPARATOR.join(texts)
        if self._unequal is not None and self._unequal.touches(joined):
            return None
        # Composing can hide an added token or make one, so it is sought before and after. Which counts is not asked.
        forms = [joined]
        if self.composes and not joined.isascii():
            forms.append(_SEPARATOR.join(map(self.composed, texts)))
        if any(token in form for token in self._added for form in forms):
            return None
        try:
            ids = self._encoding.encode_to_numpy(forms[-1], allowed_special=special, disallowed_special=())
        except ValueError:  # its stack is too small for a million white-space characters in a row
            return None
        return ids.astype(np.int64)

    def composed(self, text: str) -> str:
        """The text in Unicode's normal form C. The library's own way takes as long as encoding, so only if it must.

        What Python finds normal is normal by every version of Unicode, as long as Python's has all of its characters.
        """
        if text.isascii() or (unicodedata.is_normalized("NFC", text) and not unassigned_characters().touches(text)):
            return text
        return self._library.normalizer.normalize_str(text)

    def _slowly(self, text: str) -> np.ndarray:
        (encoding,) = self._library.encode_batch_fast([text], add_special_tokens=False)  # does not track offsets
        return np.array(encoding.ids, dtype=np.int64)


def _split_pattern(pre_tokenizer: Any) -> str | None:
    """The regular expression that a byte-level pre_tokenizer splits by; None if it is, or does, anything else."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return GPT2 if pre_tokenizer.get("use_regex", True) else None
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            # A known pattern matches everything, so the two ways to keep the matches are one.
            return pattern if (behavior, invert) in (("Isolated", False), ("Removed", True)) else None
    return None


def _ranks(model: dict[str, Any], library: "tokenizers.Tokenizer | None") -> dict[bytes, int]:
    """The tokens that text can become, as bytes, and their ids; without `library`, condition 2 is not looked into.

    Raises:
        Unsuited: merging by these ids is not what the file says.
    """
    if model.get("type") != "BPE":
        raise Unsuited("it is not a BPE")
    if any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")):
        raise Unsuited("it marks the parts of words, or falls back to bytes")
    vocab: dict[str, int] = model["vocab"]
    if not all(symbol in vocab for symbol in BYTE_SYMBOLS):
        raise Unsuited("it lacks some of the 256 bytes")
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    made = [vocab["".join(pair)] for pair in merges]
    if any(a > b for a, b in itertools.pairwise(made)) or len(set(merges)) < len(merges):
        raise Unsuited("its merges are not in the order of their ids")
    whole = bool(model.get("ignore_merges"))
    tokens = {*BYTE_SYMBOLS, *map("".join, merges), *(vocab if whole else ())}
    tokens = [token for token in tokens if _SPELLED.fullmatch(token)]  # words of text are spelled so, no others are met
    if library is not None:
        _check_tokens(tokens, vocab, merges, whole, library)
    ranks = {bytes(map(BYTE_SYMBOLS.__getitem__, token)): vocab[token] for token in tokens}
    if len(set(ranks.values())) < len(ranks):
        raise Unsuited("it has two tokens of one id")
    return ranks


def _check_tokens(
    tokens: list[str],
    vocab: dict[str, int],
    merges: list[tuple[str, ...]],
    whole: bool,
    library: "tokenizers.Tokenizer",
) -> None:
    """Condition 2 at the top of this file; `whole` is ignore_merges.

    Raises:
        Unsuited: it does not hold.
    """
    from tokenizers.models import BPE

    merging = BPE(vocab, merges) if whole else library.model  # pyright: ignore[reportArgumentType]
    unmade = [token for token in tokens if [part.id for part in merging.tokenize(token)] != [vocab[token]]]
    listed = set(merges)
    for token in unmade:
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        if not whole or any(a in vocab and b in vocab and (a, b) not in listed for a, b in cuts):
            raise Unsuited("its merges do not make all of its tokens")
