"""Tasks of lm-evaluation-harness on a run folder, and their record there."""

import contextlib
import importlib.metadata
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.api.registry import get_metric_aggregation
from lm_eval.tasks import TaskManager

from widestream.errors import UserError, unknown_name
from widestream.harness.items import by_token, describe_items, fingerprint, measures
from widestream.harness.model import HarnessModel
from widestream.harness.quiet import quiet_without_terminal
from widestream.harness.tasks import LOCAL, local_tasks
from widestream.machine import find_device
from widestream.runs.folder import load_config
from widestream.runs.metrics import finite
from widestream.runs.model import load_model, load_run_tokenizer
from widestream.runs.tasks import TaskResult, write_result

SEED = 1234
"""Of everything that the harness draws: which examples stand in front, and its resampling."""


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
    """Evaluate a run's newest checkpoint, and keep a record of each task in its folder (`runs/tasks.py`).

    Args:
        run_dir: the run.
        tasks: names in the harness.
        data: folder of local files (`tasks.py`); None: the harness's own data sets, from the hub.
        limit: only so many items of each; such a record has a name of its own.
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
    if data is None and (own_names := [task for task in tasks if task in LOCAL]):
        raise UserError(f"The harness has no task {own_names[0]}; give a file of texts with --task-data.")
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
    rest = {"step": saved.step, "limit": limit, "tokenizer": own.own.sha256, "precision": precision}
    sources = {task: str(data / f"{task}.jsonl") if data else "hub" for task in tasks}
    results = [_result(found, task, own, source=sources[task], **rest) for task in tasks]
    for result in results:
        write_result(run_dir, result)
    return results


def _evaluate(
    model: HarnessModel, tasks: Sequence[str], manager: TaskManager, limit: int | None, shots: int | None
) -> dict[str, Any]:
    try:
        with quiet_without_terminal(), _no_commit():
            found = evaluator.simple_evaluate(
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


@contextlib.contextmanager
def _no_commit() -> Iterator[None]:
    """The harness asks git for the commit of the working directory; that says nothing of a run, and git complains."""
    asks = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: ""
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asks


def _result(found: dict[str, Any], task: str, model: HarnessModel, **rest: Any) -> TaskResult:
    """One task out of what the harness returns; its metrics are called `acc,none`, their errors `acc_stderr,none`."""
    metrics, errors = {}, {}
    first = found["samples"][task][0]["filter"]
    for key, value in found["results"][task].items():
        name, _, how = key.partition(",")
        if how != first or isinstance(value, bool) or not isinstance(value, int | float):
            continue  # what a second way to read an answer found stands in the harness's own output only
        (errors if name.endswith("_stderr") else metrics)[name.removesuffix("_stderr")] = finite(float(value))
    listed = {row["metric"]: row.get("aggregation") for row in found["configs"][task].get("metric_list") or ()}
    aggregations = {
        name: (_name(listed.get(name) or get_metric_aggregation(name)), found["higher_is_better"][task].get(name, True))
        for name in metrics
    }
    rows = sorted((row for row in found["samples"][task] if row["filter"] == first), key=lambda row: row["doc_id"])
    by_item, described = measures(rows, aggregations), describe_items(rows, model)
    if any(described.positions):
        by_item["token_perplexity"] = by_token(described)
        metrics["token_perplexity"] = finite(by_item["token_perplexity"].figure)
    return TaskResult(
        task=task,
        items=len(rows),
        shots=int(found["n-shot"].get(task, 0)),
        version=str(found["versions"].get(task, "")),
        harness=importlib.metadata.version("lm_eval"),
        fingerprint=fingerprint(rows),
        metrics=metrics,
        stderr=errors,
        measures=by_item,
        of_items=described,
        **rest,
    )


def _name(aggregation: Any) -> str:
    """Of an aggregation, which tasks give as a word or as a function."""
    return aggregation if isinstance(aggregation, str) else getattr(aggregation, "__name__", "")
