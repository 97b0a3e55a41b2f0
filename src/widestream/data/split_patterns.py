"""How byte-level BPE vocabularies split text into words, and where two regular-expression engines disagree on it.

`tokenizers` splits with Oniguruma, `tiktoken` with Rust's fancy-regex. Both take the first alternative that matches,
so with the same pattern they differ only if they hold different characters for letters, numbers or white space, that
is, if they follow different versions of Unicode.
"""

import functools
from importlib.metadata import version

from widestream.data.characters import CharacterSet, known_characters

_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
_GPT4_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
_QWEN_WORDS = _GPT4_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_SPACES = r"|\s+(?!\S)|\s+"

GPT2 = _GPT2_WORDS + _SPACES
"""Of GPT-2, and of the tokenizers trained here."""
KNOWN = {words + _SPACES: f"(?:{words}){_SPACES}" for words in (_GPT2_WORDS, _GPT4_WORDS, _QWEN_WORDS)}
"""The patterns of GPT-2, of GPT-4 and Llama 3, and of Qwen 2 and 3. Each is given to `tiktoken` with brackets around
what has no lookahead: they change no match, but fancy-regex hands what is inside to a faster engine as one expression,
which makes encoding 1.6 times as fast. The patterns leave no character out."""

_CLASSES = (r"\p{L}+", r"\p{N}+", r"\s+")
_COMPARED = {("0.14.0", "0.23.3")}
"""Versions of tiktoken and tokenizers whose classes were found to be equal by `compare_classes`, which takes a second.
A test repeats it for the versions at hand."""


@functools.cache
def unequal_characters() -> CharacterSet | None:
    """The characters that the two libraries installed here do not class alike; None if there are none."""
    if (version("tiktoken"), version("tokenizers")) in _COMPARED:
        return None
    unequal = compare_classes("".join(map(chr, known_characters())))
    return CharacterSet(map(ord, unequal)) if unequal else None


def compare_classes(characters: str) -> set[str]:
    """Those of `characters` that the two libraries do not class alike, found by trying them all."""
    unequal: set[str] = set()
    for pattern in _CLASSES:
        unequal |= _matched_by_tiktoken(pattern, characters) ^ _matched_by_tokenizers(pattern, characters)
    return unequal


def _matched_by_tiktoken(pattern: str, text: str) -> set[str]:
    import tiktoken

    # Without merges the ids are the bytes, and what the pattern leaves out is left out.
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("classes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return set(bytes(encoding.encode_ordinary(text)).decode())


def _matched_by_tokenizers(pattern: str, text: str) -> set[str]:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return {character for piece, _ in split.pre_tokenize_str(text) for character in piece}
