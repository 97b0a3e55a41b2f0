"""Studies for tests, and run folders as training leaves them behind, without training."""

import json
import math
import random
from pathlib import Path

import yaml

from widestream.recipe import load_recipe, to_dict
from widestream.study.plan import fingerprints

TOKENS = 2048
"""Of a step, in all runs here."""
MACHINE = {
    "widestream": "0.1.0", "torch": "2.13.0", "python": "3.12.3", "precision": "float32", "peak_flops_per_s": None,
    "machine": {"cpu": "A Good CPU", "cores": 2, "threads": 2, "memory_gb": 7.8, "gpu": None},
}  # fmt: skip


def write_study(path: Path, **changes) -> Path:
    """A study of two models, two seeds, a search over two rates."""
    values = {
        "title": "A study",
        "question": "Which is better?",
        "reference": "transformer",
        "seeds": 2,
        "evaluations": 8,
        "search": {"rates": [0.004, 0.01], "most": 4},
        "set": {"train.steps": 16},
        "arms": {
            "transformer": {"recipe": "study/{scale}/transformer"},
            "rmt": {"recipe": "study/{scale}/rmt", "grid": {"model.stream.key_dim": [4, 16]}},
        },
    }
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path


def loss_of(config, seed: int, share: float = 1.0) -> float:
    """A made-up loss: best at a rate of 0.01 for the transformer and 0.025 for others; wider streams are better."""
    plain = config.model.stream.kind == "vector"
    best = 0.01 if plain else 0.025
    size = config.model.num_layers * config.model.embed_dim**2
    lead = 0.0 if plain else 0.1 + 0.05 * math.log2(config.model.stream.key_dim / 4)
    noise = random.Random(f"{config.model.stream}{config.optimizer.lr}{seed}").gauss(0, 0.002)
    return (
        4
        + size**-0.2
        + 0.1 * math.log10(config.optimizer.lr / best) ** 2
        - lead
        + 2 * (1 - share)
        + 0.01 * seed
        + noise
    )


def write_run(job, loss=loss_of) -> None:
    """What a finished run of a job leaves in its folder."""
    config = load_recipe(job.recipe, job.changes)
    seed, model = config.train.seed, config.model
    size = model.num_layers * 8 * model.embed_dim**2
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    parameters = {"total": size + 9000, "total_without_norm": size + 8000, "non_embedding": size + 1000, "norm": 1000,
                  "non_embedding_without_norm": size, "by_part": {"mlp": size}}  # fmt: skip
    prints = fingerprints(config)
    data = {"fingerprint": prints["train"] or "f", "heldout_fingerprint": prints["heldout"] or "h",
            "tokenizer_sha256": "t", "tokenizer": {},
            "train_tokens": 10**6, "train_bytes": 1, "heldout_tokens": 100, "heldout_bytes": 1,
            "sequence_length": 128, "batch_size": 16, "seed": config.data.seed}  # fmt: skip
    stream = getattr(model.stream, "key_dim", model.num_heads) * model.head_dim
    flops = {"train": 6 * size, "forward": 2 * size, "forward_without_logits": size, "decode": 2 * size}
    summary = {"parameters": parameters, "flops_per_token": flops, "stream_size": stream}
    (job.folder / "run.json").write_text(json.dumps(MACHINE | {"data": data, "summary": summary}))
    rows = []
    every = config.train.eval_every
    for step in sorted({*range(every, job.steps + 1, every), job.steps}):
        spent = {"tokens": step * TOKENS, "flops": 6.0 * size * step * TOKENS, "clock": {"wall_s": step * size * 1e-6}}
        value = loss(config, seed, step / job.steps)
        rows.append({"kind": "eval", "step": step, "loss": value, "bits_per_byte": None, "target_tokens": 100, **spent})
    (job.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = {"step": job.steps, "heldout": {"loss": rows[-1]["loss"]}}
    (job.folder / "done.json").write_text(json.dumps(done))


def finish(jobs, workers, may_diverge=False, may_fail=False) -> None:
    """Stands for `run_jobs`."""
    for job in jobs:
        if not job.done:
            write_run(job)
