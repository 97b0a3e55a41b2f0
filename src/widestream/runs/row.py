"""A run as one row of a tidy table."""

import json
import math
from statistics import median
from typing import Any

from widestream.runs.read import Evaluation, Run
from widestream.runs.settings import settings

LARGEST = math.log(1.7e308)
"""Beyond this loss the perplexity is no float."""


def run_row(run: Run, end: Evaluation | None) -> dict[str, Any]:
    """What a run came to; None or nan where there is no figure. docs/how-to/compare.md names the columns.

    Args:
        run: the run.
        end: the evaluation whose figures stand for it; None: it has none that counts.
    """
    info, summary = run.info, run.info["summary"]
    machine = info.get("machine", {})
    return {
        "name": run.name,
        "folder": str(run.path),
        "state": run.state,
        "seed": run.seeds[0],
        "order_seed": run.seeds[1],
        "steps": run.steps,
        "planned_steps": run.config.get("train", {}).get("steps"),
        "diverged_at": run.diverged_at,
        "skipped": run.skipped,
        "tokens": end and end.tokens,
        "flops": end and end.flops,
        "wall_s": end and end.wall_s,
        "loss": end and end.loss,
        "bits_per_byte": end and end.bits_per_byte,
        "perplexity": end and (math.exp(end.loss) if end.loss < LARGEST else math.inf),
        "heldout_tokens": end and end.target_tokens,
        **train_figures(run),
        "parameters": run.parameters["total"],
        "non_embedding": run.parameters["non_embedding"],
        "flops_per_token": run.flops_per_token["train"],
        "stream_size": summary["stream_size"],
        "starts_from": run.origin_name or None,
        "data_fingerprint": run.data.get("fingerprint"),
        "heldout_fingerprint": run.data.get("heldout_fingerprint"),
        "tokenizer_sha256": run.data.get("tokenizer_sha256"),
        "precision": info.get("precision"),
        "widestream": info.get("widestream"),
        "code": info.get("code"),
        "torch": info.get("torch"),
        "python": info.get("python"),
        "cpu": machine.get("cpu"),
        "gpu": machine.get("gpu"),
        "threads": machine.get("threads"),
        "started": info.get("started"),
        "resumed_elsewhere": _moves(info),
    }


def train_figures(run: Run) -> dict[str, float | None]:
    """Median tokens per second and MFU, and peak memory in bytes, of the training rows; None where not logged."""
    clock = run.clock
    return {
        "tokens_per_s": median(clock["tokens_per_s"]) if "tokens_per_s" in clock else None,
        "mfu": median(clock["mfu"]) if "mfu" in clock else None,
        "memory_bytes": int(max(clock["memory_bytes"])) if "memory_bytes" in clock else None,
    }


def _moves(info: dict[str, Any]) -> int:
    """How often a run went on elsewhere or by other code; not where only settings changed."""
    keys = ("step", "started", "settings", "peak_flops_per_s")
    made = [{key: value for key, value in part.items() if key not in keys} for part in info.get("resumed", [])]
    first = {key: info.get(key) for key in made[0]} if made else {}
    return sum(before != after for before, after in zip([first, *made], made, strict=False))


def setting_columns(runs: list[Run], keys: list[str]) -> list[dict[str, Any]]:
    """Settings of each run by key, as cells: text, numbers and truth values as they are, all else as JSON."""
    return [{key: _cell(settings(run.config).get(key)) for key in keys} for run in runs]


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)
