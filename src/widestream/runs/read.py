"""Run folders as reports read them: held-out evaluations brought together, and notes on what is missing."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widestream.errors import UserError
from widestream.runs.folder import METRICS, is_aside, is_run, read_config, read_done, read_info, read_rows, read_samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One evaluation on the held-out split."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Training tokens seen."""
    flops: float
    """Training FLOPs spent, the logits matmul included."""
    wall_s: float
    """Seconds spent training (evaluation and saving excluded)."""
    loss: float
    """Mean cross-entropy in nats per token."""
    bits_per_byte: float | None
    """Loss in bits per byte of source text, or None where the bytes were not counted."""
    target_tokens: int
    """Held-out tokens the loss is a mean over."""
    whole: bool
    """Whether that is the whole held-out split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one run folder says."""

    path: Path
    """The folder."""
    config: dict[str, Any]
    """Resolved recipe (config.yaml)."""
    info: dict[str, Any]
    """Environment, data and summary (run.json)."""
    train: tuple[dict[str, Any], ...]
    """Training rows of metrics.jsonl."""
    evals: tuple[Evaluation, ...]
    """Held-out evaluations with a finite loss, by step."""
    samples: tuple[dict[str, Any], ...]
    """Sampled texts, if any were written."""
    done: dict[str, Any] | None
    """done.json, or None while the run is unfinished."""
    notes: tuple[str, ...]
    """What a reader should know: unfinished, half-written line, lost evaluations."""

    @property
    def name(self) -> str:
        """Name of the recipe; the folder's name where there is none."""
        return str(self.config.get("name") or self.path.name)

    @property
    def seeds(self) -> tuple[int, int]:
        """Seed of the initial weights, seed of the order of the batches."""
        return int(self.config.get("train", {}).get("seed", 0)), int(self.info["data"]["seed"])

    @property
    def data(self) -> dict[str, Any]:
        """What the run says of its data."""
        return self.info["data"]

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters: `total`, `non_embedding`, `by_part`."""
        return self.info["summary"]["parameters"]

    @property
    def flops_per_token(self) -> dict[str, Any]:
        """FLOPs per token: `forward`, `forward_without_logits`, `train`, `decode`, `by_part`."""
        return self.info["summary"]["flops_per_token"]

    @property
    def final(self) -> Evaluation:
        """The last evaluation; the one of the whole held-out split where the last step has both."""
        last = self.evals[-1].step
        return max((row for row in self.evals if row.step == last), key=lambda row: (row.whole, row.target_tokens))

    @property
    def curve(self) -> tuple[Evaluation, ...]:
        """The evaluations made on the same held-out tokens: those of the commonest size, one a step."""
        sizes = Counter(row.target_tokens for row in self.evals)
        size = max(sizes, key=lambda key: (sizes[key], key))
        return tuple(row for row in self.evals if row.target_tokens == size)


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Expand folders of runs into the runs directly inside them, each run once, in the order given.

    Runs that training moved aside (`NAME.old-1`) are found only when given themselves.

    Raises:
        UserError: A path is neither a run nor a folder with runs in it.
    """
    runs: dict[Path, Path] = {}
    for path in map(Path, paths):
        children = path.iterdir() if path.is_dir() and not is_run(path) else ()
        inside = [path] if is_run(path) else sorted(run for run in children if is_run(run) and not is_aside(run))
        if not inside:
            raise UserError(
                f"{path} is no run folder (no config.yaml) and holds none; give folders that training wrote."
            )
        for run in inside:
            runs.setdefault(run.resolve(), run)
    return list(runs.values())


def load_run(path: str | Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        UserError: A file of the run is missing or damaged, or there is no evaluation in it yet.
    """
    path = Path(path)
    config, info = read_config(path), read_info(path)
    rows, cut = read_rows(path)
    notes = [f"the last line of {METRICS} is half written and is left out"] if cut else []
    try:
        evals, lost = _evaluations(rows)
    except KeyError as error:
        raise UserError(f"A held-out row of {path / METRICS} has no {error}; leave this run out.") from error
    if lost:
        notes.append(f"{lost} held-out evaluations without a finite loss are left out")
    if not evals:
        raise UserError(f"{path} has no held-out evaluation yet; let it train to its first one, or leave it out.")
    done = read_done(path)
    if done is None:
        steps = config.get("train", {}).get("steps")
        planned = f" of {steps:,}" if steps else ""
        notes.insert(0, f"unfinished: its last evaluation is at step {evals[-1].step:,}{planned}")
    return Run(
        path=path,
        config=config,
        info=info,
        train=tuple(row for row in rows if row.get("kind") == "train"),
        evals=tuple(evals),
        samples=tuple(read_samples(path)),
        done=done,
        notes=tuple(notes),
    )


def _evaluations(rows: list[dict[str, Any]]) -> tuple[list[Evaluation], int]:
    """Evaluations by step (the last one written wins), and how many had no finite loss."""
    evals: dict[tuple[int, int], Evaluation] = {}
    lost = 0
    for row in rows:
        if row.get("kind") != "eval":
            continue
        if row["loss"] is None or not math.isfinite(row["loss"]):
            lost += 1
            continue
        evals[row["step"], row["target_tokens"]] = Evaluation(
            step=row["step"],
            tokens=row["tokens"],
            flops=row["flops"],
            wall_s=row["clock"]["wall_s"],
            loss=row["loss"],
            bits_per_byte=row.get("bits_per_byte"),
            target_tokens=row["target_tokens"],
            whole=row.get("whole", True),
        )
    return [evals[key] for key in sorted(evals)], lost
