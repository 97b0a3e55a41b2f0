"""benchmarks/gpu_suite.py, tried on a CPU at tiny sizes: it runs, and says what it could not measure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).parents[2] / "benchmarks" / "gpu_suite.py"


@pytest.mark.slow
def test_every_part_runs_in_miniature(tmp_path: Path) -> None:
    path = tmp_path / "quick.json"
    command = [sys.executable, str(SUITE), "--quick", "--device", "cpu", "--sizes", "rmt-46m", "--json", str(path)]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(path.read_text())
    assert all(row["ok"] for row in record["checks"])
    assert len(record["checks"]) == 9
    assert record["checks"][0]["errors"]["out"] > 0  # of FlexAttention, forward; on a CPU there is no way back
    assert record["kernels"][0]["forward"]["fraction_of_copy"] > 0
    assert {"eager", "compiled", "compiled, documents"} <= {row["variant"] for row in record["steps"]}
    assert {row["size"] for row in record["modern"]} == {"modern, 2 kv heads", "modern, 1 kv heads"}
    assert [row["model"] for row in record["decode"]] == ["rmt-46m", "transformer-49m"]
    saved = {row["key_dim"]: row["saved_bytes"] for row in record["memory"] if row["variant"] == "eager"}
    assert 0 < saved[16] < saved[32]
    assert record["tuning"]
    assert "left_out" not in record
    assert "failures" not in record
    assert "eager" in done.stdout


def test_without_a_gpu_a_sentence_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(SUITE)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--quick --device cpu" in done.stderr
