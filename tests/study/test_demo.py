"""The demo from text to report at a tiny size, interrupted and taken up again."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from widestream.errors import UserError
from widestream.report import compare
from widestream.report.search_record import load_search
from widestream.runs import pool
from widestream.runs.pool import Job, run_jobs
from widestream.study import demo
from widestream.study.demo import DemoOptions, make_jobs, prepare_data, run_demo, search_record

WORDS = [
    "the",
    "ship",
    "sailed",
    "over",
    "a",
    "grey",
    "sea",
    "while",
    "old",
    "captain",
    "told",
    "stories",
    "of",
    "gold",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "stories.jsonl"
    with path.open("w") as file:
        for number in range(60):
            text = " ".join(draw.choice(WORDS) for _ in range(400))
            file.write(json.dumps({"text": text, "split": "heldout" if number % 10 == 0 else "train"}) + "\n")
    return path


@pytest.fixture
def small(monkeypatch, corpus):
    """The demo on a small corpus instead of the bundled one."""
    monkeypatch.setattr(demo, "SOURCE", str(corpus))


@pytest.mark.slow
def test_interrupted_demo_ends_with_a_report(small, tmp_path, monkeypatch, capsys):
    options = DemoOptions(folder=tmp_path / "demo", seeds=1, steps=3, workers=2)
    monkeypatch.setattr(pool.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_demo(options)
    monkeypatch.undo()
    monkeypatch.setattr(demo, "SOURCE", "no longer needed: the data is prepared")
    report = run_demo(options)
    out = capsys.readouterr().out
    assert report.is_file()
    assert demo.PROMPT in report.read_text()
    assert out.count(demo.PROMPT) == 2
    names = {run.path.name for run in compare([options.folder]).runs}
    assert names == {"rmt-seed0", "transformer-seed0"}
    assert compare([options.folder]).comparable
    before = (options.folder / "rmt-seed0" / "metrics.jsonl").read_bytes()
    run_demo(options)  # nothing is left to do, and nothing is done again
    assert (options.folder / "rmt-seed0" / "metrics.jsonl").read_bytes() == before


def test_both_models_see_the_same_batches():
    jobs = make_jobs(DemoOptions(seeds=2))
    assert [job.folder.name for job in jobs] == ["rmt-seed0", "transformer-seed0", "rmt-seed1", "transformer-seed1"]
    assert jobs[0].changes == jobs[1].changes != jobs[2].changes
    assert len({job.steps for job in jobs}) == 1


def test_the_demo_uses_the_rates_that_its_search_found():
    search = load_search(search_record())
    rates = {name: [trial.lr for trial in trials if trial.chosen] for name, trials in search.models.items()}
    for name, recipe in demo.MODELS.items():
        assert rates[name] == [demo.load_recipe(recipe).optimizer.lr]
    assert search.models["rmt"][0].steps == search.models["transformer"][0].steps


def test_a_failing_run_says_why(tmp_path):
    job = Job(recipe="demo/rmt", changes=(f"data.path={tmp_path / 'nothing'}",), folder=tmp_path / "run", steps=5)
    with pytest.raises(UserError, match=r"The run .*run failed: .*nothing"):
        run_jobs([job], workers=1)


def test_terminating_the_demo_ends_its_runs(tmp_path, monkeypatch):
    started = []

    def start(job):
        job.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        started.append(job.process)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()

    monkeypatch.setattr(Job, "start", start)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_:
        run_jobs([Job(recipe="demo/rmt", changes=(), folder=tmp_path / "run", steps=5)], workers=1)
    assert exit_.value.code == 128 + signal.SIGTERM
    assert started[0].returncode is not None
    assert signal.getsignal(signal.SIGTERM) is before


def test_finished_runs_are_not_started_again(tmp_path):
    job = Job(recipe="no/such-recipe", changes=(), folder=tmp_path, steps=5)
    (tmp_path / "done.json").write_text('{"step": 5}')
    run_jobs([job], workers=1)


def test_a_finished_run_of_another_length_is_not_taken_for_this_one(tmp_path):
    job = Job(recipe="no/such-recipe", changes=(), folder=tmp_path / "run", steps=5)
    job.folder.mkdir()
    (job.folder / "done.json").write_text('{"step": 3}')
    with pytest.raises(UserError, match="no/such-recipe"):
        run_jobs([job], workers=1)


def test_progress_counts_whole_lines_only(tmp_path):
    job = Job(recipe="demo/rmt", changes=(), folder=tmp_path, steps=5)
    assert job.steps_done == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert job.steps_done == 2


def test_data_is_prepared_once(small, tmp_path, monkeypatch):
    data = prepare_data(tmp_path)
    manifest = (data / "manifest.json").read_bytes()
    monkeypatch.setattr(demo, "SOURCE", "gone.jsonl")
    prepare_data(tmp_path)
    assert (data / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize("name", ["seeds", "steps", "workers"])
def test_options_out_of_range(name):
    with pytest.raises(UserError, match=f"--{name}"):
        DemoOptions(**{name: 0})
