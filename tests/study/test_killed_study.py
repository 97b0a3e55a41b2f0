"""A study that is killed, with everything under it, goes on and loses at most one interval between evaluations."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from study_runs import write_study
from tiny_runs import write_data

EVERY, STEPS = 5, 60
SETTINGS = {
    "model.vocab_size": 257, "model.num_layers": 1, "model.num_heads": 2, "model.mlp_dim": 16, "model.context": 32,
    "train.steps": STEPS, "train.batch_size": 2, "train.eval_windows": 2,
}  # fmt: skip


def rows(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_killed_and_started_again(tmp_path):
    data = write_data(tmp_path / "data")
    arms = {"transformer": {"recipe": "study/cpu/transformer"}}
    study = write_study(
        tmp_path / "mine.yaml", arms=arms, seeds=1, search=None, evaluations=STEPS // EVERY, set=SETTINGS
    )
    command = [sys.executable, "-m", "widestream", "study", "run", str(study), "--out", str(tmp_path / "runs"),
               "--data", str(data), "--workers", "1"]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    runs = tmp_path / "runs" / "cpu" / "runs"
    folder = None
    for _ in range(1200):
        folder = next((path for path in runs.glob("vector-*") if path.is_dir()), None) if runs.is_dir() else None
        if folder is not None and len(rows(folder)) > 2 * EVERY:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert folder is not None
    before = [row["step"] for row in rows(folder) if row["kind"] == "train"]
    assert 2 * EVERY <= before[-1] < STEPS, "killed in the middle"
    saved = [int(path.name.rpartition("_")[2]) for path in (folder / "checkpoints").glob("step_*")]
    assert before[-1] - max(saved) <= EVERY + 1
    subprocess.run(command, check=True, timeout=120, stderr=subprocess.DEVNULL)
    after = [row["step"] for row in rows(folder) if row["kind"] == "train"]
    assert after == list(range(1, STEPS + 1)), "every step once"
    record = json.loads((tmp_path / "runs" / "cpu" / "mine.study.json").read_text())
    assert record["arms"][0]["runs"][0]["status"] == "done"
    assert not list(runs.glob("*.claim"))
