"""benchmarks/soak.py, for some seconds: what it measures, and that it would tell a process that grows."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

STAYS = (4,) * 6
SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["soak"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["soak"]


@pytest.mark.slow
def test_some_seconds():
    """So soon after its start a process still grows a little."""
    command = [sys.executable, str(SOAK), "0.05", "--steps", "100", "--growth", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    result = json.loads(last)
    assert 1 <= result["samples"] <= len(lines)
    assert result["rounds"] >= 1
    assert result["files"][0] >= 3, "standard input, output and error"
    assert result["threads"][0] >= 2, "batches are read by a thread of their own"


@pytest.mark.parametrize(
    ("memory", "files", "threads", "flat"),
    [
        ((300, 400, 408, 400, 392, 406, 400), (5, *STAYS), (2, *STAYS), True),
        ((400, 400, 404, 406, 408, 410, 414), (4, *STAYS), (4, *STAYS), False),
        ((400, 400, 400, 400, 400, 400, 400), (4, 4, 4, 4, 4, 4, 7), (4, *STAYS), False),
        ((400, 400, 400, 400, 400, 400, 400), (4, 4, 5, 4, 4, 5, 4), (4, *STAYS), True),
        ((400, 400, 400, 400, 400, 400, 400), (4, *STAYS), (4, 4, 4, 4, 4, 4, 6), False),
    ],
)
def test_what_is_flat(soak, memory, files, threads, flat):
    """The first sample lies in the first fifth."""
    samples = [soak.Sample(*one) for one in zip((0, 12, 20, 30, 40, 50, 60), memory, files, threads, strict=True)]
    assert soak.verdict(samples, minutes=1.0, most=0.02)["flat"] == flat


def write_rows(run, steps, lost=None):
    """Metrics of a run that ended half-way and went on."""
    halves = (steps // 2, steps)
    due = {"train": 1, "eval": 25, "stream": 10}
    rows = [
        {"kind": kind, "step": step}
        for step in range(1, steps + 1)
        for kind, every in due.items()
        if (step % every == 0 or step in halves) and (kind, step) != lost
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.parametrize("lost", [("train", 17), ("eval", 50), ("stream", 20)], ids=str)
def test_gaps_are_told(soak, tmp_path, lost):
    write_rows(tmp_path, 60)
    assert soak.gaps(tmp_path, 60) is None
    write_rows(tmp_path, 60, lost)
    assert f"rows of kind {lost[0]}" in soak.gaps(tmp_path, 60)
