"""Several processes that divide runs between them, and what is left when one of them is killed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from filelock import SoftFileLease

from tiny_runs import RECIPE
from widestream.errors import TERMINATED
from widestream.runs import pool
from widestream.runs.folder import claim_file, list_checkpoints
from widestream.runs.metrics import MetricsWriter
from widestream.runs.pool import Job, run_jobs


def make_job(folder):
    return Job(recipe="none", changes=(), folder=folder, steps=5)


def elsewhere(job):
    """Rewrite a claim as if a process on another machine had made it."""
    path = claim_file(job.folder)
    lines = path.read_text().splitlines()
    path.write_text("".join("host=elsewhere\n" if line.startswith("host=") else f"{line}\n" for line in lines))


def test_one_process_has_a_run_until_it_gives_it_back(tmp_path):
    first, second = make_job(tmp_path / "run"), make_job(tmp_path / "run")
    assert first.take()
    assert not second.take()
    second.end()
    assert not second.take(), "giving back what one does not have changes nothing"
    first.end()
    assert second.take()
    second.end()
    assert not list(tmp_path.iterdir())


HOLD = """
import sys, time
from pathlib import Path
from widestream.runs import pool
pool.LEASE_S = float(sys.argv[2])
job = pool.Job(recipe="none", changes=(), folder=Path(sys.argv[1]), steps=5)
print(job.take(), flush=True)
time.sleep(60)
"""


def hold(folder, lease):
    """A process that has claimed a run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(lease)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def test_a_claim_is_kept_while_its_process_lives_and_free_at_once_when_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "LEASE_S", 0.3)
    job = make_job(tmp_path / "run")
    process = hold(job.folder, 0.3)
    for _ in range(10):  # its heartbeat outlives the lease several times
        assert not job.take()
        time.sleep(0.1)
    process.kill()
    process.communicate()
    assert job.take(), "on this machine it can be seen that the owner is gone"
    job.end()


def test_a_claim_left_behind_on_another_machine_is_taken_over_after_the_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "LEASE_S", 0.5)
    job = make_job(tmp_path / "run")
    process = hold(job.folder, 0.5)
    process.kill()
    process.communicate()
    elsewhere(job)
    assert not job.take(), "its owner may be at work"
    time.sleep(0.6)
    assert job.take()
    job.end()


def test_a_live_claim_is_not_taken_by_a_clock_that_is_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "LEASE_S", 30.0)
    job, other = make_job(tmp_path / "run"), make_job(tmp_path / "run")
    assert other.take()
    long_ago = time.time() - 3600  # what a heartbeat looks like to a clock an hour ahead
    os.utime(claim_file(job.folder), (long_ago, long_ago))
    assert not job.take()
    other.end()


def test_a_live_claim_is_not_taken_from_another_table_of_processes(tmp_path):
    """As between two containers of one host name, where the owner's process number is nobody's or another's."""
    elsewhere = ["unshare", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*elsewhere, "true"], capture_output=True).returncode:
        pytest.skip("no right to make a table of processes")
    job = make_job(tmp_path / "run")
    assert job.take()
    found = subprocess.run(
        [*elsewhere, sys.executable, "-c", HOLD.replace("time.sleep(60)", ""), str(job.folder), "30"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout == "False\n"
    job.end()


def test_a_lost_race_is_no_failure(tmp_path, monkeypatch):
    """A process trains in the folder though the claim is free: its pool stood still, and has lost it."""
    monkeypatch.setattr(pool, "POLL_S", 0.05)
    job, started = make_job(tmp_path / "run"), []
    job.folder.mkdir()
    metrics = MetricsWriter(job.folder, 0)

    def start(self, gpu=None):
        started.append(metrics._file.closed)
        (self.folder / "done.json").write_text('{"step": 5}')
        self.process = subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(Job, "start", start)
    threading.Timer(0.5, metrics._file.close).start()
    run_jobs([job], workers=1)
    assert started == [True], "it waits until the other process has ended"
    assert not job.failed


def test_a_process_that_ends_because_another_one_trains_is_tried_again(tmp_path):
    job = make_job(tmp_path / "run")
    job.folder.mkdir()
    with MetricsWriter(job.folder, 0):
        job.settle(over=False)
        assert not job.failed
    job.settle(over=False)
    assert job.failed


def test_a_run_that_was_taken_over_from_a_process_that_stood_still_is_left_to_the_other(tmp_path, monkeypatch):
    """As after a suspended laptop: the process goes on and finds its claim gone."""
    monkeypatch.setattr(pool, "LEASE_S", 0.3)
    monkeypatch.setattr(pool, "POLL_S", 0.05)
    job, started = make_job(tmp_path / "run"), []
    other = SoftFileLease(claim_file(job.folder), lease_duration=0.3)

    def start(job, gpu=None):
        assert not started, "made twice"
        job.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        started.append(job.process)
        claim_file(job.folder).unlink()
        other.acquire(blocking=False)

    def end(job):
        original(job)
        job.folder.mkdir(exist_ok=True)
        (job.folder / "done.json").write_text('{"step": 5}')  # by the other process, which then gives the claim back
        other.release()

    original = Job.end
    monkeypatch.setattr(Job, "start", start)
    monkeypatch.setattr(Job, "end", end)
    run_jobs([job], workers=1)
    assert started[0].returncode == -signal.SIGTERM
    assert not job.failed


def test_a_run_claimed_elsewhere_is_waited_for_and_not_made_again(tmp_path, monkeypatch):
    job, other = make_job(tmp_path / "run"), make_job(tmp_path / "run")
    assert other.take()
    waited = []

    def sleep(_):
        waited.append(1)
        if len(waited) == 3:  # the other process finishes
            job.folder.mkdir()
            (job.folder / "done.json").write_text('{"step": 5}')
            other.end()

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


STUDY = """
import os, sys, time
from pathlib import Path
from widestream.runs import pool
job = pool.Job(recipe=sys.argv[1], changes=(), folder=Path("run"), steps=5)
job.start()
print(job.process.pid, flush=True)
time.sleep(60)
"""


def test_killing_the_study_ends_its_runs(tmp_path):
    (tmp_path / "endless.py").write_text("from pathlib import Path\nimport time\nPath('begun').touch()\ntime.sleep(60)")
    recipe = RECIPE | {"model": RECIPE["model"] | {"stream": {"kind": "endless:Stream"}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    parent = subprocess.Popen(
        [sys.executable, "-c", STUDY, "recipe.yaml"], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert parent.stdout is not None
    child = Path("/proc", parent.stdout.readline().strip())
    for _ in range(600):
        if (tmp_path / "begun").exists():
            break
        time.sleep(0.05)
    assert alive(child), (tmp_path / "run.log").read_text()
    parent.kill()
    parent.communicate()
    for _ in range(200):
        if not alive(child):
            return
        time.sleep(0.05)
    pytest.fail("the run goes on without its study")


def test_a_run_that_is_ended_saves_first(tmp_path, data):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    never = 10**6
    changes = (f"data.path={data}", f"train.steps={never}", f"train.save_every={never}", f"train.eval_every={never}")
    job = Job(recipe=str(recipe), changes=changes, folder=tmp_path / "run", steps=never)
    assert job.take()
    job.start()
    for _ in range(1200):
        if job.steps_done > 2:
            break
        time.sleep(0.05)
    job.end()
    assert job.steps_done > 2, job.last_words
    assert [step for step, _ in list_checkpoints(job.folder)] == [job.steps_done]
    assert job.process is not None
    assert job.process.returncode == TERMINATED
    assert not list(tmp_path.glob("*.claim"))


def alive(process):
    """Whether a process exists and has not ended: /proc/PID."""
    return process.exists() and process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
