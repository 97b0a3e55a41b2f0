"""Small real input for the tests of the data part."""

import json
import random
from pathlib import Path

from widestream.data.prepare import PrepareOptions, prepare
from widestream.data.tokenizer import ByteTokenizer

SENTENCE = "the quick brown fox jumps over a lazy dog while naïve façades glow in 東京 at dusk"


def texts(count: int, seed: int = 0, longest: int = 60) -> list[str]:
    """Different documents of 1 to `longest` words."""
    draw = random.Random(seed)
    return [f"{i} " + " ".join(draw.choices(SENTENCE.split(), k=draw.randint(1, longest))) for i in range(count)]


def write_jsonl(path: Path, documents: list[str], splits: list[str] | None = None) -> Path:
    """A .jsonl file, with the field split where `splits` says one."""
    rows = [{"text": text} for text in documents]
    for row, split in zip(rows, splits or [], strict=False):
        row["split"] = split
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prepare_bytes(folder: Path, train: list[str], heldout: list[str] | None = None, shard_tokens: int = 10**8) -> Path:
    """Prepare documents with the byte tokenizer; returns the prepared folder."""
    heldout = ["held out"] if heldout is None else heldout
    splits = ["train"] * len(train) + ["heldout"] * len(heldout)
    source = write_jsonl(folder / "source.jsonl", train + heldout, splits)
    options = PrepareOptions(shard_tokens=shard_tokens)
    prepare([source], folder / "prepared", ByteTokenizer(), options, workers=1, progress=False)
    return folder / "prepared"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class CountingTokenizer(ByteTokenizer):
    """Bytes, with a note of what was encoded; raises once `limit` documents are done."""

    def __init__(self, limit: float = float("inf"), error: type[BaseException] = KeyboardInterrupt):
        self.limit, self.error = limit, error
        self.encoded: list[str] = []

    def encode_batch(self, texts):
        if len(self.encoded) >= self.limit:
            raise self.error
        self.encoded += texts
        return super().encode_batch(texts)


class LyingTokenizer(ByteTokenizer):
    """Makes ids beyond the vocabulary it claims."""

    vocab_size = 100
    boundary_id = 99
    sha256 = "0" * 64
