"""Run folders as reports read them: held-out evaluations brought together, and notes on what is missing."""

import math
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from pathlib import Path, PurePath
from typing import Any, Literal

from widestream.errors import UserError
from widestream.runs.folder import (
    CONFIG,
    INFO,
    METRICS,
    NONFINITE,
    damaged,
    is_aside,
    is_run,
    read_config,
    read_done,
    read_info,
    require_trained,
)
from widestream.runs.looks import Look, look_of
from widestream.runs.rows import metrics_rows, read_samples, require_as_written

State = Literal["done", "unfinished", "diverged"]

CLOCK = ("tokens_per_s", "mfu", "memory_bytes")
"""What is kept of the training rows."""


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
    clock: Mapping[str, Sequence[float]]
    """What the training rows of metrics.jsonl say of speed and memory: each of `CLOCK`, where it was logged."""
    evals: tuple[Evaluation, ...]
    """Held-out evaluations with a finite loss, by step; none where a run did not come to its first one."""
    curve: tuple[Evaluation, ...]
    """Those made on the same held-out tokens: of the commonest size, one a step. Of a single step with several sizes,
    the smaller one: it is what longer runs of the same recipe have all along."""
    looks: tuple[Look, ...]
    """What was seen of the stream over training (`train.watch_every`), by step; none where nobody looked."""
    samples: tuple[dict[str, Any], ...]
    """Sampled texts, if any were written."""
    done: dict[str, Any] | None
    """done.json, or None while the run is unfinished."""
    steps: int
    """Optimizer steps done, as far as the log tells; skipped ones are among them."""
    diverged_at: int | None
    """Step at which loss or gradient was not finite and the run stopped, or after which its last evaluation was not
    finite; None for a run that did not diverge."""
    skipped: int
    """Optimizer steps that moved nothing, because loss or gradient was not finite (`train.nonfinite: skip`)."""
    notes: tuple[str, ...]
    """What a reader should know: unfinished, half-written line, lost evaluations."""

    @property
    def state(self) -> State:
        """`diverged` is a result; `unfinished` runs may go on."""
        if self.diverged_at is not None:
            return "diverged"
        return "unfinished" if self.done is None else "done"

    @property
    def name(self) -> str:
        """Name of the recipe; the folder's name where there is none."""
        return str(self.config.get("name") or self.path.name)

    @property
    def seeds(self) -> tuple[int, int]:
        """Seed of the initial weights, seed of the order of the batches."""
        return int(self.config.get("train", {}).get("seed", 0)), int(self.info["data"]["seed"])

    @property
    def seed_name(self) -> str:
        """Both seeds agree in most studies; then one number is enough."""
        weights, order = self.seeds
        return str(weights) if weights == order else f"{weights}/{order}"

    @property
    def batches(self) -> tuple[Any, ...]:
        """What two runs share that begin alike and see the same batches: seeds, sizes, data."""
        return (*self.seeds, *(self.data[key] for key in ("batch_size", "sequence_length", "fingerprint")))

    @property
    def origin(self) -> dict[str, Any]:
        """The trained weights that it starts from (`train.init_from`): `folder`, `step`, `sha256`; empty for none."""
        return self.info.get("init_from") or {}

    @property
    def origin_name(self) -> str:
        """The same in words: `big at step 5,000`; the run alone where its weights were made and not trained."""
        if not self.origin:
            return ""
        name, step = PurePath(str(self.origin.get("folder", ""))).parent.parent.name, self.origin.get("step")
        return f"{name} at step {step:,}" if step else name

    @property
    def data_name(self) -> str:
        """Name of the folder that the data lay in; the same data may go by several."""
        return PurePath(str(self.config.get("data", {}).get("path", ""))).name

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
        """The last evaluation; the one of the whole held-out split where the last step has both.

        Only where there is one at all.
        """
        last = takewhile(lambda row: row.step == self.evals[-1].step, reversed(self.evals))
        return max(last, key=lambda row: (row.whole, row.target_tokens))


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
    """Read a run folder: finished or not, diverged or not, evaluated or not.

    Raises:
        UserError: A file of the run is missing or damaged.
    """
    path = Path(path)
    config, info, done = read_config(path), read_info(path), read_done(path)
    require_trained(path, info, "it has no metrics to compare; give runs that were trained from it.")
    rows, log = metrics_rows(path), _Log()
    try:
        for row in rows:
            log.take(row)
        evals, lost = log.evaluations(), log.lost
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
        raise UserError(f"A row of {path / METRICS} {what}; put a good copy back or leave this run out.") from error
    require_as_written(path, int(done["step"]) if done and isinstance(done.get("step"), int) else None)
    notes = [f"the last line of {METRICS} is half written and is left out"] if rows.cut else []
    if lost:
        what = "evaluation without a finite loss is" if len(lost) == 1 else "evaluations without a finite loss are"
        notes.append(f"{len(lost)} held-out {what} left out")
    run = Run(
        path=path,
        config=config,
        info=info,
        clock=log.clock,
        evals=tuple(evals),
        curve=_curve(evals),
        looks=tuple(log.looks),
        samples=tuple(read_samples(path)),
        done=done,
        steps=log.steps,
        diverged_at=_diverged_at(path, done, evals, lost),
        skipped=log.skipped,
        notes=tuple(notes),
    )
    _require_sound(run)
    return replace(run, notes=(*_state_notes(run), *notes))


def _require_sound(run: Run) -> None:
    """Make sure that what every report reads of config.yaml and run.json is there and of its kind.

    Raises:
        UserError: It is not; names the file.
    """
    parts = [run.config.get(name, {}) for name in ("model", "data", "train", "optimizer", "schedule")]
    if not all(isinstance(part, dict) for part in parts) or not isinstance(parts[0].get("stream", {}), dict):
        raise damaged(run.path / CONFIG)
    lengths = [parts[2].get(key) for key in ("steps", "tokens")]
    if not all(length is None or is_number(length) for length in lengths):
        raise damaged(run.path / CONFIG)
    if not _is_sound(run):
        raise damaged(run.path / INFO)


def _is_sound(run: Run) -> bool:
    """Whether run.json has what is counted with, and nothing of another kind than it should be."""
    info, machine = run.info, run.info.get("machine", {})
    try:
        _ = run.seeds
        counts = [run.data[key] for key in ("train_tokens", "sequence_length", "batch_size")]
        counts += [run.parameters["total"], run.parameters["non_embedding"]]
        counts += [run.flops_per_token["train"], info["summary"]["stream_size"]]
        figures = [info.get("peak_flops_per_s"), info.get("processes"), machine.get("memory_gb")]
        figures += [run.data.get("heldout_bytes")]
        digests = [run.data.get(key, "") for key in ("heldout_fingerprint", "tokenizer_sha256")]
        return (
            all(is_number(count) and count > 0 for count in counts)
            and all(figure is None or (is_number(figure) and figure >= 0) for figure in figures)
            and isinstance(run.data["fingerprint"], str)
            and all(digest is None or isinstance(digest, str) for digest in digests)
            and _is_origin(run.origin)
            and all(isinstance(later, dict) for later in info.get("resumed", []))
            and all(isinstance(later.get("machine", {}), dict) for later in info.get("resumed", []))
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return False


def _is_origin(origin: Any) -> bool:
    """Whether an entry says of trained weights what `Run.origin` has, or is empty."""
    if not isinstance(origin, dict):
        return False
    step = origin.get("step", 0)
    return type(step) is int and isinstance(origin.get("folder", ""), str) and isinstance(origin.get("sha256", ""), str)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold, and no truth value."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _curve(evals: list[Evaluation]) -> tuple[Evaluation, ...]:
    sizes = Counter(row.target_tokens for row in evals)
    size = max(sizes, key=lambda key: (sizes[key], -key), default=0)
    return tuple(row for row in evals if row.target_tokens == size)


def _diverged_at(path: Path, done: dict[str, Any] | None, evals: list[Evaluation], lost: list[int]) -> int | None:
    """The step at which the run stopped because something was not finite, or of a last evaluation that was not."""
    if lost and (not evals or max(lost) >= evals[-1].step):
        return max(lost)
    stops = [int(found[1]) for file in path.glob(NONFINITE.format("*")) if (found := re.search(r"_(\d+)\.", file.name))]
    return max(stops) if stops and done is None else None


def _state_notes(run: Run) -> list[str]:
    """What became of a run that did not come to its end, and of its steps."""
    planned = run.config.get("train", {}).get("steps")
    of = f" of {planned:,}" if planned else ""
    last = f"its last evaluation is at step {run.evals[-1].step:,}{of}" if run.evals else "it has no evaluation"
    notes = []
    if run.state == "diverged":
        notes.append(f"diverged at step {run.diverged_at:,}{of}: {last}")
    elif run.state == "unfinished":
        notes.append(f"unfinished: {last}{'' if run.evals else f' yet, at step {run.steps:,}{of}'}")
    if run.skipped:
        notes.append(
            f"{run.skipped:,} of {run.steps:,} steps moved nothing, because loss or gradient was not finite; their "
            "tokens and FLOPs are counted"
        )
    return notes


class _Log:
    """What is kept of the rows of a run."""

    def __init__(self):
        self.evals: dict[tuple[int, int], Evaluation] = {}
        self.lost: list[int] = []  # steps of evaluations without a finite loss
        self.clock: dict[str, array[float]] = {}
        self.looks: list[Look] = []
        self.steps = self.skipped = 0

    def take(self, row: dict[str, Any]) -> None:
        self.steps = row["step"]
        match row["kind"]:
            case "train":
                clock = row.get("clock") or {}
                for name in CLOCK:
                    if is_number(clock.get(name)):
                        self.clock.setdefault(name, array("d")).append(clock[name])
            case "event":
                self.skipped = max(self.skipped, int(row.get("skipped", 0)))
            case "stream":
                self.looks.append(look_of(row))
            case "eval":
                self._evaluated(row)

    def _evaluated(self, row: dict[str, Any]) -> None:
        if row["loss"] is None or not math.isfinite(row["loss"]):
            self.lost.append(row["step"])
            return
        bits = row.get("bits_per_byte")
        spent = (row["step"], row["tokens"], row["flops"], row["clock"]["wall_s"], row["target_tokens"])
        if wrong := [value for value in (*spent, row["loss"]) if not is_number(value)]:
            raise ValueError(f"{wrong[0]!r:.20} is no number that can be counted with")
        self.evals[row["step"], row["target_tokens"]] = Evaluation(
            step=row["step"],
            tokens=int(row["tokens"]),
            flops=float(row["flops"]),
            wall_s=float(row["clock"]["wall_s"]),
            loss=float(row["loss"]),
            bits_per_byte=None if bits is None or not math.isfinite(bits) else float(bits),
            target_tokens=int(row["target_tokens"]),
            whole=row.get("whole", True),
        )

    def evaluations(self) -> list[Evaluation]:
        """By step."""
        found = [self.evals[key] for key in sorted(self.evals)]
        for what in ("tokens", "flops", "wall_s"):
            if any(getattr(after, what) < getattr(before, what) for before, after in pairwise(found)):
                raise ValueError(f"its {what} fall from one evaluation to a later one")
        return found
