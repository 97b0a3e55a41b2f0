"""Synthetic run folders with plausible curves, in the format that training writes."""

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from widestream.runs.tasks import Items, Measure, TaskResult, write_result

TOKENS_PER_STEP = 4096

MODELS: dict[str, dict[str, Any]] = {
    "transformer": {
        "stream": {"kind": "vector"},
        "lr": 0.003,
        "parameters": {
            "total": 5_312_768,
            "non_embedding": 3_150_080,
            "norm": 2_304,
            "by_part": {
                "embedding": 1_048_576,
                "unembedding": 1_048_576,
                "positions": 65_536,
                "attention": 1_050_624,
                "mlp": 2_097_152,
                "norm": 2_304,
            },
        },
        "flops": {
            "forward": 8_650_000.0,
            "forward_without_logits": 6_552_848.0,
            "train": 25_950_000.0,
            "decode": 8.7e6,
        },
        "stream_size": 256,
        "speed": 9100.0,
        "curve": (60.0, 0.2525),
    },
    "rmt": {
        "stream": {"kind": "matrix", "key_dim": 32, "norm_gain": "full"},
        "lr": 0.01,
        "parameters": {
            "total": 4_283_392,
            "non_embedding": 2_120_704,
            "norm": 9_216,
            "by_part": {
                "embedding": 1_048_576,
                "unembedding": 1_048_576,
                "positions": 65_536,
                "keys": 14_336,
                "mlp": 2_097_152,
                "norm": 9_216,
            },
        },
        "flops": {
            "forward": 7_100_000.0,
            "forward_without_logits": 5_002_848.0,
            "train": 21_300_000.0,
            "decode": 7.2e6,
        },
        "stream_size": 1024,
        "speed": 6900.0,
        "curve": (17.0, 0.1887),
    },
}


def loss_at(model: str, step: int, seed: int = 0) -> float:
    """A power law with a soft start, noise that the models share at one seed, and a little of each model's own."""
    soft, power = MODELS[model]["curve"]
    shared, own = random.Random(f"{seed}/{step}"), random.Random(f"{model}/{seed}/{step}")
    luck = random.Random(f"{seed}").gauss(0, 1) + 0.3 * random.Random(f"{model}/{seed}").gauss(0, 1)
    noise = 0.006 * shared.gauss(0, 1) + 0.003 * own.gauss(0, 1) + 0.01 * luck
    return 8.32 / (1 + step / soft) ** power + noise


def write_run(
    folder: Path,
    model: str,
    *,
    seed: int = 0,
    steps: int = 1700,
    every: int = 25,
    loss: Any = None,
    finished: bool = True,
    samples: list[dict[str, Any]] | None = None,
    config: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
    rows: list[dict[str, Any]] | None = None,
) -> Path:
    """Write a run folder. `loss`: a function of the step; `config`: dotted keys; `data`, `info`: keys of run.json."""
    folder.mkdir(parents=True)
    spec = MODELS[model]
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(model, seed, steps, config or {})))
    (folder / "run.json").write_text(json.dumps(_info(spec, seed, data or {}) | (info or {})))
    loss = loss or (lambda step: loss_at(model, step, seed))
    lines = list(rows or _rows(spec, steps if finished else steps // 2, every, loss))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    if samples is not None:
        (folder / "samples.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples))
    if finished:
        last = [row for row in lines if row["kind"] == "eval"][-1:]
        (folder / "done.json").write_text(json.dumps({"step": last[0]["step"] if last else 0}))
    return folder


def write_demo(root: Path, **changes: Any) -> list[Path]:
    """Two models, two seeds each, with samples."""
    told = {
        "transformer": " the door was open, and the man who had come in was not the man who had gone out.",
        "rmt": " she saw that the house was <b>very</b> quiet & the lamp had been put out \u2028 long before.",
    }
    return [
        write_run(
            root / f"{model}-seed{seed}",
            model,
            seed=seed,
            samples=[
                {"prompt": prompt, "text": told[model] * 2, "seed": 0, "temperature": 0.8, "top_k": 50}
                for prompt in ("When he came back", "It was late, and")
            ],
            **changes,
        )
        for model in MODELS
        for seed in (0, 1)
    ]


def write_search(path: Path, rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)) -> Path:
    """A search record: the same grid for both models, one rate at which the transformer diverges."""
    rows = [
        {
            "model": model,
            "lr": lr,
            "seed": 7,
            "steps": None if model == "transformer" and lr == 0.03 else 400,
            "heldout_loss": None if model == "transformer" and lr == 0.03 else 4.6 + 0.3 * math.log10(lr / best) ** 2,
            "diverged": model == "transformer" and lr == 0.03,
        }
        for model, best in (("transformer", 0.003), ("rmt", 0.01))
        for lr in rates
    ]
    path.write_text(json.dumps(rows))
    return path


def _config(model: str, seed: int, steps: int, changes: dict[str, Any]) -> dict[str, Any]:
    spec = MODELS[model]
    config: dict[str, Any] = {
        "name": f"demo/{model}",
        "description": "synthetic",
        "model": {
            "vocab_size": 4096,
            "num_layers": 4,
            "num_heads": 8,
            "stream": dict(spec["stream"]),
            "tied_head": False,
        },
        "data": {"path": "data/prose", "seed": seed},
        "train": {"steps": steps, "batch_size": 16, "seed": seed, "eval_every": 25},
        "optimizer": {"lr": spec["lr"], "grad_clip": None},
        "schedule": {"kind": "cosine"},
    }
    for key, value in changes.items():
        *path, last = key.split(".")
        inner = config
        for part in path:
            inner = inner[part]
        inner[last] = value
    return config


def _info(spec: dict[str, Any], seed: int, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "widestream": "0.1.0",
        "torch": "2.13.0",
        "python": "3.12.3",
        "machine": {"cpu": "A Good CPU", "cores": 2, "threads": 2, "memory_gb": 7.8, "gpu": None},
        "precision": "bf16",
        "peak_flops_per_s": 3.1e11,
        "data": {
            "fingerprint": "ab12cd34ef56ab12cd34ef56",
            "tokenizer_sha256": "00ff11ee22dd33cc",
            "train_tokens": 3_400_000,
            "train_bytes": 13_900_000,
            "heldout_tokens": 180_000,
            "heldout_bytes": 736_000,
            "sequence_length": 256,
            "batch_size": 16,
            "seed": seed,
        }
        | data,
        "summary": {
            "parameters": spec["parameters"],
            "flops_per_token": spec["flops"],
            "stream_size": spec["stream_size"],
        },
        "started": "2026-01-02T03:04:05",
    }


def _rows(spec: dict[str, Any], steps: int, every: int, loss: Any):
    for step in range(every, steps + 1, every):
        tokens = step * TOKENS_PER_STEP
        spent = {"step": step, "tokens": tokens, "flops": tokens * spec["flops"]["train"]}
        clock = {"wall_s": tokens / spec["speed"]}
        speed = {"tokens_per_s": spec["speed"], "mfu": 0.31, "data_s": 0.001, "memory_bytes": 9.1e8}
        yield {"kind": "train", **spent, "loss": loss(step) + 0.05, "lr": 0.01, "clock": clock | speed}
        yield {
            "kind": "eval",
            **spent,
            "loss": loss(step),
            "perplexity": math.exp(loss(step)) if loss(step) < 700 else None,
            "bits_per_byte": loss(step) / math.log(2) * 180_000 / 736_000,
            "target_tokens": 180_000,
            "whole": True,
            "clock": clock,
        }


def write_task(
    run: Path, task: str, measures: dict[str, Measure], *, items: Items | None = None, **changes: Any
) -> TaskResult:
    """Write the record of a task into a run folder, as evaluating it does."""
    count = len(next(iter(measures.values())).values)
    described = items or Items(
        choices=[2] * count,
        context=[10 + at for at in range(count)],
        answer=[[at % 7, at % 11] for at in range(count)],
        echo=[None] * count,
        positions=[[] for _ in range(count)],
    )
    values: dict[str, Any] = {
        "task": task,
        "step": 1700,
        "items": count,
        "limit": None,
        "shots": 0,
        "version": "1.0",
        "harness": "0.4.13",
        "fingerprint": "f" * 64,
        "tokenizer": "t" * 64,
        "source": "items.jsonl",
        "precision": "float32",
        "metrics": {name: measure.figure for name, measure in measures.items()},
        "stderr": {},
    }
    result = TaskResult(**(values | changes), measures=measures, of_items=described)
    write_result(run, result)
    return result
