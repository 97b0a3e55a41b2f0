"""How a run does on downstream tasks: `tasks/NAME.json.xz` in its folder, the figures and what every item came to.

`widestream eval RUN --tasks` writes it (room `harness`); comparisons read it, without the harness.
docs/reference/run-folder.md says what is in it.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from widestream.errors import UserError
from widestream.files import read_json, write_json
from widestream.runs.read import is_number

FOLDER = "tasks"
"""In a run's folder."""
FORMAT = 1
"""Version of a record; a reader refuses any other."""
Form = Literal["mean", "perplexity", "bits"]
"""How a figure follows from items: the (weighted) mean of their values; exp of it; the mean of nats in bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One metric of a task, item by item."""

    form: Form
    """How the figure follows."""
    higher_is_better: bool
    """Which way is up."""
    values: list[float]
    """Of every item: right (1) or wrong (0), or nats."""
    weights: list[float] | None = None
    """Words, bytes or tokens that the nats of an item are of; None: each item counts once."""

    @property
    def binary(self) -> bool:
        """Whether an item is right or wrong, and nothing between."""
        return self.form == "mean" and self.weights is None and set(self.values) <= {0.0, 1.0}

    @property
    def mean(self) -> float:
        """Weighted mean of the values: the figure before `form`."""
        return math.fsum(self.values) / (len(self.values) if self.weights is None else math.fsum(self.weights))

    @property
    def figure(self) -> float:
        """The metric."""
        return figure(self.form, self.mean)


def figure(form: Form, mean: float) -> float:
    """A metric from the mean over items; inf where a perplexity is beyond a float."""
    if form == "perplexity":
        return math.exp(mean) if mean < 700 else math.inf
    return mean / math.log(2) if form == "bits" else mean


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """What is to be known of every item of a task, in the order of the data set. Lengths and ids are in tokens."""

    choices: list[int]
    """Answers to choose from; 1 where none is given."""
    context: list[int]
    """Length of what stands in front of the right answer, the boundary included; a model sees the end of a long one."""
    answer: list[list[int]]
    """Ids of the right answer; of a whole text none."""
    echo: list[int | None]
    """How far back the right answer's tokens stood in the context last, from first token to first; None: nowhere."""
    positions: list[list[list[float]]]
    """Of a whole text: (nats, tokens) by how many tokens stand in front in the window: 1, 2-3, 4-7, ... Else empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """How a run does on one task."""

    task: str
    """Its name in the harness."""
    step: int
    """Of the checkpoint."""
    items: int
    """How many were scored."""
    limit: int | None
    """Whether these were the first so many only."""
    shots: int
    """Examples in front of each."""
    version: str
    """Of the task, as the harness says it."""
    harness: str
    """Version of lm-evaluation-harness."""
    fingerprint: str
    """SHA-256 over all items and prompts, in order."""
    tokenizer: str
    """SHA-256 of the run's tokenizer."""
    source: str
    """Where items came from: a file, or a data set of the hub."""
    precision: str
    """float32 or bf16."""
    metrics: dict[str, float | None]
    """By name: acc, acc_norm, perplexity, ...; None where it is beyond a float."""
    stderr: dict[str, float | None]
    """Their standard errors, where the harness gives them."""
    measures: dict[str, Measure]
    """The same metrics item by item, of those whose figure is a mean over items."""
    of_items: Items
    """What the items are like."""

    def figures(self) -> dict[str, Any]:
        """All but the items: what is printed."""
        return {key: value for key, value in asdict(self).items() if key not in ("measures", "of_items")}

    @property
    def name(self) -> str:
        """Of its record: the task's, and how many items it was cut to."""
        return self.task if self.limit is None else f"{self.task}-first-{self.items}"


def write_result(run_dir: Path, result: TaskResult) -> Path:
    """Keep a result in the run's folder, over an older one of the same name; returns the file."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"{result.name}.json.xz"
    write_json(path, {"format": FORMAT, **asdict(result)})
    return path


def read_results(run_dir: Path) -> list[TaskResult]:
    """All results in a run's folder, by name.

    Raises:
        UserError: one is damaged or of another version.
    """
    return [read_result(path) for path in sorted((run_dir / FOLDER).glob("*.json.xz"))]


def read_result(path: Path) -> TaskResult:
    """One result.

    Raises:
        UserError: the file is damaged or of another version.
    """
    values = read_json(path)
    version = values.pop("format", None) if isinstance(values, dict) else None
    if version != FORMAT:
        raise UserError(f"{path} is no record of tasks that this version reads; evaluate the run again.")
    result, whole = None, False
    try:
        values["measures"] = {name: _built(Measure, row) for name, row in values["measures"].items()}
        values["of_items"] = _built(Items, values["of_items"])
        result = _built(TaskResult, values)
        measured = [column for one in result.measures.values() for column in (one.values, one.weights) if column]
        described = [getattr(result.of_items, field.name) for field in dataclasses.fields(Items)]
        whole = result.items > 0 and all(len(column) == result.items for column in (*measured, *described))
        whole = whole and all(is_number(value) for column in (*measured, *described[:2]) for value in column)
    except (KeyError, TypeError, AttributeError):
        pass
    if result is None or not whole:
        raise UserError(f"{path} is damaged; evaluate the run again.")
    return result


def _built(kind: Any, values: dict[str, Any]) -> Any:
    if values.keys() != {field.name for field in dataclasses.fields(kind)}:
        raise TypeError
    return kind(**values)


UNLIKE = {
    "version of lm-evaluation-harness": "harness",
    "version of the task": "version",
    "examples in front": "shots",
    "items": "items",
    "items or prompts": "fingerprint",
    "tokenizer": "tokenizer",
}
"""What must agree before two results are of the same measurement."""


def unlike(results: Sequence[TaskResult]) -> str | None:
    """What keeps results of one task from being compared, as the end of a sentence; None where nothing does."""
    for words, field in UNLIKE.items():
        values = list(dict.fromkeys(str(getattr(result, field)) for result in results))
        if len(values) > 1:
            return f"{words} differ ({', '.join(value[:12] for value in values)})"
    return None
