"""Time the preparation of a text folder, in tokens a second, and the loader, in batches a second."""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from widestream.bench.paired import Turn, medians, take_turns
from widestream.bench.plots import Panel
from widestream.bench.record import Outputs, make_record, require_counts
from widestream.data.batches import TrainBatches
from widestream.data.prepare import prepare
from widestream.data.store import TokenStore
from widestream.data.tokenizer import Tokenizer, resolve_tokenizer
from widestream.report.figures.rows import BarChart

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """What is timed."""

    paths: tuple[str, ...] = ("bundled:prose",)
    """What to read, as `widestream data prepare` does."""
    tokenizers: tuple[str, ...] = ("byte",)
    """byte, gpt2 or paths of tokenizer.json files."""
    workers: tuple[int, ...] = (1,)
    """Threads that tokenize."""
    sequence_length: int = 512
    """[T] Tokens of a window that the loader makes."""
    batch_size: int = 8
    """[B] Windows of a batch."""
    batches: int = 50
    """Batches that are timed together."""
    rounds: int = 3
    """Timed rounds."""
    warmup: int = 1
    """Rounds before."""

    def __post_init__(self):
        require_counts(self, workers=1, sequence_length=1, batch_size=1, batches=1, rounds=1, warmup=0)


def bench_data(settings: DataSettings, outputs: Outputs) -> dict[str, Any]:
    """Time preparation with every tokenizer and number of workers, and the loader on the result.

    Names in `seconds` and `medians` are `prepare TOKENIZER, N workers` and `load TOKENIZER`. `tokens_per_s` is of both;
    `batches_per_s` of the loader, on one thread and without a model.

    Raises:
        UserError: text, tokenizer or settings that cannot be used, or nowhere to write.
    """
    outputs.check()
    tokenizers = {name: resolve_tokenizer(name) for name in settings.tokenizers}
    turns: dict[str, Turn] = {}
    tokens: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, tokenizer) in enumerate(tokenizers.items()):
            folder = Path(scratch) / str(number)
            manifest = prepare(settings.paths, folder, tokenizer, workers=max(settings.workers), progress=False)
            counts = sum(split.tokens for split in manifest.splits.values())
            for workers in settings.workers:
                label = f"prepare {name}, {workers} worker{'s' * (workers > 1)}"
                turns[label], tokens[label] = _preparing(settings, tokenizer, workers, folder), counts
            label = f"load {name}"
            turns[label] = _loading(settings, folder)
            tokens[label] = settings.batches * settings.batch_size * settings.sequence_length
        seconds = take_turns(turns, settings.rounds, settings.warmup, CPU)
    middle = medians(seconds)
    record = make_record(
        "data", settings, CPU,
        seconds=seconds,
        medians=middle,
        tokens=tokens,
        tokens_per_s={name: tokens[name] / value for name, value in middle.items()},
        batches_per_s={name: settings.batches / value for name, value in middle.items() if name.startswith("load ")},
    )  # fmt: skip
    outputs.write(record, _panels(record))
    return record


def _preparing(settings: DataSettings, tokenizer: Tokenizer, workers: int, folder: Path) -> Turn:
    """All of `widestream data prepare`: reading, cutting, tokenizing, hashing, writing. Every time to a new folder."""
    numbers = itertools.count()

    def ready(_: int) -> Callable[[], Any]:
        out = folder.with_name(f"{folder.name}-{workers}-{next(numbers)}")
        return lambda: prepare(settings.paths, out, tokenizer, workers=workers, progress=False)

    return ready


def _loading(settings: DataSettings, folder: Path) -> Turn:
    batches = TrainBatches(TokenStore.open(folder, "train"), settings.sequence_length, settings.batch_size, seed=0)

    def ready(round_: int) -> Callable[[], Any]:
        first = (round_ + settings.warmup) * settings.batches

        def run() -> None:
            for step in range(first, first + settings.batches):
                batches.at(step)

        return run

    return ready


def _panels(record: dict[str, Any]) -> list[Panel]:
    parts = {word: {n: v for n, v in record["tokens_per_s"].items() if n.startswith(word)} for word in ("prep", "load")}
    return [
        BarChart(title="Data preparation", x_label="tokens per second", values=parts["prep"]),
        BarChart(title="Loader", x_label="tokens per second", values=parts["load"]),
    ]
