import json
import multiprocessing
import os
import random
import signal
import time

import pytest
from drills import outcome

from processes import train_and_die, train_quickly, train_told_at_the_end, train_without_terminal
from tiny_runs import tiny_config


@pytest.fixture(scope="module")
def processes():
    """Makes real processes that have torch imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["widestream.train.loop", "torch._dynamo"])
    return context


def run(processes, target, *args):
    process = processes.Process(target=target, args=args)
    process.start()
    process.join(60)
    return process.exitcode


OPTIMIZERS = {
    "adamw": {},
    "muon": {"kind": "muon", "muon": {"keys": True, "momentum_start": 0.8, "momentum_warmup": 20}},
}


@pytest.fixture(scope="module", params=OPTIMIZERS)
def config(data, request):
    optimizer = OPTIMIZERS[request.param]
    return tiny_config(data, train={"steps": 36, "save_every": 3, "eval_every": 5, "log_every": 2}, optimizer=optimizer)


@pytest.fixture(scope="module")
def uninterrupted(processes, config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert run(processes, train_quickly, config, run_dir) == 0
    return outcome(run_dir)


def test_killed_inside_saves_and_resumed_ends_bit_identical(processes, config, uninterrupted, tmp_path):
    points = random.Random(1)  # a save makes eight calls of fsync and, when it removes an old checkpoint, two of rename
    calls = [("fsync", points.randint(1, 9)) for _ in range(6)] + [("rename", points.randint(1, 2)) for _ in range(3)]
    for call, count in calls:
        assert run(processes, train_and_die, config, tmp_path / "run", call, count) == -signal.SIGKILL
    assert run(processes, train_quickly, config, tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == uninterrupted
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_killed_at_any_moment_and_resumed_ends_bit_identical(processes, config, uninterrupted, tmp_path):
    moments = random.Random(2)
    kills = 0
    metrics = tmp_path / "run" / "metrics.jsonl"
    for _ in range(5):
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        process = processes.Process(target=train_quickly, args=(config, tmp_path / "run"))
        process.start()
        while process.is_alive() and (not metrics.exists() or metrics.stat().st_mtime_ns == before):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))  # it trains now: three steps take about as long
        process.kill()
        process.join(60)
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 3
    assert run(processes, train_quickly, config, tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == uninterrupted


def test_told_to_end_it_saves_and_later_goes_on_bit_identical(processes, config, uninterrupted, tmp_path):
    metrics = tmp_path / "run" / "metrics.jsonl"
    process = processes.Process(target=train_quickly, args=(config, tmp_path / "run"))
    process.start()
    while process.is_alive() and (not metrics.exists() or metrics.stat().st_size < 500):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGHUP)  # its terminal goes away, which ends nothing
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    newest = max(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert last <= int(newest.removeprefix("step_")) <= last + 1, "log_every is 2"
    assert run(processes, train_quickly, config, tmp_path / "run") == 0
    files, rows, done = outcome(tmp_path / "run")
    assert (rows, done) == uninterrupted[1:]
    last = {name: digest for name, digest in uninterrupted[0].items() if "step_00000036" in name}
    assert last.items() <= files.items()


def test_told_to_end_behind_its_last_step_it_is_done_and_ends(processes, config, uninterrupted, tmp_path):
    """A program that trains one run after another would begin the next."""
    assert run(processes, train_told_at_the_end, config, tmp_path / "run") == 143
    assert outcome(tmp_path / "run") == uninterrupted


def test_a_terminal_that_goes_away_does_not_end_a_training(processes, config, uninterrupted, tmp_path):
    assert run(processes, train_without_terminal, config, tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == uninterrupted
