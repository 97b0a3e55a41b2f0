"""Several processes that divide runs between them, and what is left when one of them is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from widestream.runs import claims, pool
from widestream.runs.pool import Job, run_jobs


def test_one_process_has_a_run_until_it_gives_it_back(tmp_path):
    assert claims.take(tmp_path / "run")
    assert not claims.take(tmp_path / "run")
    claims.drop(tmp_path / "run")
    assert claims.take(tmp_path / "run")


def test_a_claim_left_behind_is_taken_over(tmp_path):
    path = tmp_path / "run.claim"
    path.write_text(json.dumps({"host": "another machine", "pid": 1}))
    assert not claims.take(tmp_path / "run"), "its owner may be at work"
    old = time.time() - claims.STALE_S - 1
    os.utime(path, (old, old))
    assert claims.take(tmp_path / "run")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = json.loads(path.read_text())["host"]
    path.write_text(json.dumps({"host": host, "pid": gone.pid}))
    assert claims.take(tmp_path / "run"), "on this machine it can be seen that the owner is gone"


def test_touching_keeps_a_claim(tmp_path):
    path = tmp_path / "run.claim"
    claims.take(tmp_path / "run")
    old = time.time() - 2 * claims.STALE_S
    os.utime(path, (old, old))
    claims.touch(tmp_path / "run")
    assert not claims.take(tmp_path / "run")


def test_a_run_claimed_elsewhere_is_waited_for_and_not_made_again(tmp_path, monkeypatch):
    job = Job(recipe="none", changes=(), folder=tmp_path / "run", steps=5)
    claims.take(job.folder)
    waited = []

    def sleep(_):
        waited.append(1)
        if len(waited) == 3:  # the other process finishes
            job.folder.mkdir()
            (job.folder / "done.json").write_text('{"step": 5}')
            claims.drop(job.folder)

    monkeypatch.setattr(pool.time, "sleep", sleep)
    monkeypatch.setattr(Job, "start", lambda self: pytest.fail("made twice"))
    run_jobs([job], workers=1)
    assert len(waited) >= 3
    assert not list(tmp_path.glob("*.claim*"))


def test_a_run_that_fails_is_left_behind_where_that_may_be(tmp_path):
    bad = Job(recipe="no/such-recipe", changes=(), folder=tmp_path / "bad", steps=5)
    run_jobs([bad], workers=1, may_fail=True)
    assert bad.failed
    assert "no/such-recipe" in bad.last_words
    assert not list(tmp_path.glob("*.claim"))


@pytest.mark.parametrize(
    ("visible", "count", "workers", "seen"),
    [("4,7", 2, 3, ["4", "7", "4"]), ("4,7", 2, 1, ["4,7"] * 3), ("4", 1, 3, ["4"] * 3), ("4,7", 0, 3, ["4,7"] * 3)],
)
def test_runs_are_spread_over_gpus(tmp_path, monkeypatch, visible, count, workers, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    start, found = subprocess.Popen, []

    def record(command, env, **options):
        found.append((env or os.environ)["CUDA_VISIBLE_DEVICES"])
        return start([sys.executable, "-c", ""])

    monkeypatch.setattr(pool.subprocess, "Popen", record)
    jobs = [Job(recipe="none", changes=(), folder=tmp_path / str(i), steps=5) for i in range(3)]
    run_jobs(jobs, workers=workers, may_fail=True)
    assert found == seen


def test_killing_the_study_ends_its_runs(tmp_path):
    code = (
        "import subprocess, sys, time; from widestream.runs import pool\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "p = subprocess.Popen(sleep, preexec_fn=pool._end_with_parent)\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        if not claims._alive(child) or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail("the run goes on without its study")
