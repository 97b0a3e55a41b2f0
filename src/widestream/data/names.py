"""What the name of a file says: what kind it is, which split it belongs to, whether it is text to learn from at all."""

import os
import re
from pathlib import Path, PurePath

MANIFEST = "manifest.json"
"""What describes a prepared folder."""
PACKED = (".gz", ".xz", ".zst", ".zstd", ".bz2")
"""Ends of names of compressed files; what a file is is seen from its first bytes."""
TEXT = (".txt", ".md")
"""Ends of names of text files, which --cut concerns."""
JSON = (".jsonl", ".ndjson", ".json")
"""Ends of names of files with a JSON object a line."""
TABLE = ".parquet"
"""End of a name of a parquet file."""
READ = f"{', '.join((*TEXT, *JSON))} (each also as {', '.join(PACKED)}), {TABLE}"
"""What is read, for messages."""

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("heldout", "validation", "valid", "val", "dev"), "heldout"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Split by the words that stand for it in names: those of the `datasets` library, and our own."""
_LETTER = r"[^\W\d_]"
_SPLIT_WORD = re.compile(rf"(?<!{_LETTER})({'|'.join(SPLIT_WORDS)})(?!{_LETTER})")
_ABOUT = re.compile(
    rf"(readme|licen[cs]e|copying|notice|authors|citation|changelog|contributing|code_of_conduct|security|datasheet"
    rf"|data_?card|dataset_card)(?!{_LETTER})"
)
_BESIDE = {
    *("config.json", "generation_config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"),
    *("state.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "manifest.json", "progress.json"),
}


def kind_of(path: PurePath) -> str | None:
    """`text`, `json` or `parquet` by a name's end, in capitals or not and packed or not; None: none that is read."""
    name = path.name.lower()
    if name.endswith(TABLE):
        return "parquet"
    name = name.removesuffix(claimed_packing(path))
    return "text" if name.endswith(TEXT) else "json" if name.endswith(JSON) else None


def claimed_packing(path: PurePath) -> str:
    """How a file is compressed by its name's end, such as `.gz`; empty: it is not."""
    return next((suffix for suffix in PACKED if path.name.lower().endswith(suffix)), "")


def split_of(label: str) -> str | None:
    """The split that a path speaks of: as `datasets` has it, its folders go before its name, the nearest first.

    A word counts where no letter stands beside it: `data/test-00000.parquet`, `dev.txt`, not `latest.txt`. A name with
    words of several splits says nothing.
    """
    *folders, name = PurePath(label.lower()).parts
    for part in (*reversed(folders), name):
        found = {SPLIT_WORDS[word] for word in _SPLIT_WORD.findall(part)}
        if len(found) == 1:
            return found.pop()
    return None


def passed_over(name: str) -> str | None:
    """Why a file or folder found in a folder is passed over by its name; None: it is not. Named itself, it is read."""
    if name.startswith("."):
        return "hidden"
    if name.startswith("__"):
        return "a folder or file for machines"
    if _ABOUT.match(name.lower()) and kind_of(Path(name)) == "text":
        return "about the data, not of them"
    return "settings or a vocabulary" if name.lower() in _BESIDE else None


def shown(name: str | os.PathLike[str]) -> str:
    """A name as text that any terminal and any file can hold: what is not UTF-8 or not printable is escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
