"""Tasks of lm-evaluation-harness on a run folder, and their record there."""

import importlib.metadata
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from widestream.errors import UserError, unknown_name
from widestream.files import write_json
from widestream.harness.model import HarnessModel
from widestream.harness.tasks import local_tasks
from widestream.machine import find_device
from widestream.runs.folder import load_config
from widestream.runs.model import load_model, load_run_tokenizer

FOLDER = "tasks"
"""In a run's folder: a record for every task."""
SEED = 1234
"""Of everything that the harness draws: which examples stand in front, and its resampling."""


@dataclass(frozen=True)
class TaskResult:
    """How a run does on one task."""

    task: str
    """Its name in the harness."""
    step: int
    """Of the checkpoint."""
    items: int
    """How many were scored."""
    shots: int
    """Examples in front of each."""
    version: str
    """Of the task, as the harness says it."""
    harness: str
    """Version of lm-evaluation-harness."""
    source: str
    """Where items came from: a file, or a data set of the hub."""
    precision: str
    """float32 or bf16."""
    metrics: dict[str, float]
    """By name: acc, acc_norm, perplexity, ..."""
    stderr: dict[str, float]
    """Their standard errors, where the harness gives them."""
    scores: dict[str, list[Any]]
    """Of every item, in the order of the data set, by metric."""


def run_tasks(
    run_dir: Path,
    tasks: Sequence[str],
    data: Path | None = None,
    *,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
    precision: str = "float32",
) -> list[TaskResult]:
    """Evaluate a run's newest checkpoint, and keep a record of each task in `tasks/NAME.json` of its folder.

    Args:
        run_dir: the run.
        tasks: names in the harness.
        data: folder of local files (`tasks.py`); None: the harness's own data sets, from the hub.
        limit: only so many items of each; such a record is called `NAME-first-N.json`.
        shots: examples in front of each item; None: as the task has it.
        batch_size: rows of a forward pass.
        device: where to compute; None: where the run was trained.
        precision: `float32` or `bf16`.

    Raises:
        UserError: no run or checkpoint, an unknown task, missing or wrong files, or data that cannot be had.
    """
    if not tasks or len({*tasks}) < len(tasks):
        raise UserError("--tasks must name tasks, each once: --tasks piqa,arc_easy.")
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; it must be at least 1.")
    config = load_config(run_dir)
    model, saved = load_model(run_dir, find_device(device or config.train.device))
    own = HarnessModel(model.eval(), load_run_tokenizer(run_dir), batch_size, precision)
    with tempfile.TemporaryDirectory() as made:
        if data is not None:
            local_tasks(tasks, data, Path(made))
        manager = TaskManager(include_path=made, include_defaults=data is None)
        for task in tasks:
            if task not in manager.all_tasks:
                raise unknown_name(f"task {task!r}", task, manager.all_tasks)
        found = _evaluate(own, tasks, manager, limit, shots)
    results = [
        _result(found, task, saved.step, str(data / f"{task}.jsonl") if data else "hub", precision) for task in tasks
    ]
    (run_dir / FOLDER).mkdir(exist_ok=True)
    for result in results:
        name = result.task if limit is None else f"{result.task}-first-{result.items}"
        write_json(run_dir / FOLDER / f"{name}.json", asdict(result))
    return results


def _evaluate(
    model: HarnessModel, tasks: Sequence[str], manager: TaskManager, limit: int | None, shots: int | None
) -> dict[str, Any]:
    try:
        found = simple_evaluate(
            model=model, tasks=list(tasks), task_manager=manager, limit=limit, num_fewshot=shots, bootstrap_iters=1000,
            random_seed=SEED, numpy_random_seed=SEED, torch_random_seed=SEED, fewshot_random_seed=SEED,
        )  # fmt: skip
    except (ConnectionError, OSError) as error:
        raise UserError(
            f"The items of {', '.join(tasks)} cannot be had from the hub ({type(error).__name__}); give local files "
            "with --task-data."
        ) from error
    assert found is not None
    return found  # pyright: ignore[reportReturnType]


def _result(found: dict[str, Any], task: str, step: int, source: str, precision: str) -> TaskResult:
    """One task out of what the harness returns; its metrics are called `acc,none`, their errors `acc_stderr,none`."""
    metrics, errors = {}, {}
    for key, value in found["results"][task].items():
        name = key.partition(",")[0]
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "sample_len":
            (errors if name.endswith("_stderr") else metrics)[name.removesuffix("_stderr")] = float(value)
    rows = sorted(found["samples"][task], key=lambda row: row["doc_id"])
    return TaskResult(
        task=task,
        step=step,
        items=len(rows),
        shots=int(found["n-shot"].get(task, 0)),
        version=str(found["versions"].get(task, "")),
        harness=importlib.metadata.version("lm_eval"),
        source=source,
        precision=precision,
        metrics=metrics,
        stderr=errors,
        scores={name: [row[name] for row in rows] for name in metrics if all(name in row for row in rows)},
    )
