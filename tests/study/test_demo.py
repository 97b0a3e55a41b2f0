"""The demo from text to report at a tiny size, interrupted and taken up again."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from study_runs import write_run
from tiny_runs import write_data
from widestream.errors import UserError
from widestream.recipe import load_recipe
from widestream.report import compare
from widestream.report.search_record import load_search
from widestream.runs import pool
from widestream.runs.pool import Job, run_jobs
from widestream.study import demo, run
from widestream.study.demo import prepare_data, run_demo
from widestream.study.load import STUDIES, load_study
from widestream.study.plan import Place, arm_job
from widestream.study.run import StudyOptions, run_study

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
def small(monkeypatch, tmp_path, corpus):
    """The demo on a small corpus instead of the bundled one; returns the corpus, which may be removed."""
    source = shutil.copy(corpus, tmp_path)
    text = (STUDIES.folder / "demo.yaml").read_text()
    (tmp_path / "demo.yaml").write_text(text.replace("bundled:prose", str(source)).replace("4096", "300"))
    monkeypatch.setattr(STUDIES, "folder", tmp_path)
    return Path(source)


MODELS = ("rmt", "transformer", "rmt-today", "transformer-today")


def planned(seeds: int = 2) -> list[Job]:
    """The demo's runs, arm by arm."""
    study = load_study("demo")
    place = Place(Path("runs/demo"), Path("runs/demo/data"))
    return [arm_job(study, arm, place, seed, None) for arm in study.arms for seed in range(seeds)]


@pytest.mark.slow
def test_interrupted_demo_ends_with_a_report(small, tmp_path, monkeypatch, capsys):
    options = StudyOptions(folder=tmp_path / "demo", seeds=1, steps=3, workers=2)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(pool.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_demo(options)
    small.unlink()  # no longer needed: the data is prepared
    report = run_demo(options)
    out = capsys.readouterr().out
    assert report.is_file()
    assert demo.PROMPT in report.read_text()
    assert out.count(demo.PROMPT) == 4
    assert "Each against its own reference, rmt " in out
    names = {run.path.name for run in compare([options.folder]).runs}
    assert names == {f"{name}-seed0" for name in MODELS}
    assert compare([options.folder]).comparable
    before = (options.folder / "rmt-seed0" / "metrics.jsonl").read_bytes()
    run_demo(options)  # nothing is left to do, and nothing is done again
    assert (options.folder / "rmt-seed0" / "metrics.jsonl").read_bytes() == before
    record = json.loads((options.folder / "demo.study.json").read_text())
    assert {run["folder"] for arm in record["arms"] for run in arm["runs"]} == names
    assert {run["status"] for arm in record["arms"] for run in arm["runs"]} == {"done"}
    assert record["command"] == f"widestream demo --out {options.folder} --seeds 1 --steps 3"
    with pytest.raises(UserError, match=r"rmt-seed0 holds another run; it differs in train.steps \(3 there, 4 now\)"):
        run_demo(StudyOptions(folder=options.folder, seeds=1, steps=4))


def test_both_models_see_the_same_batches():
    first, second, *others = planned()
    assert first.changes != second.changes
    assert first.changes == others[0].changes
    assert second.changes == others[1].changes
    assert len({job.steps for job in (first, second, *others)}) == 1


def test_the_runs_are_those_of_earlier_versions():
    jobs = planned(seeds=1)
    assert [str(job.folder) for job in jobs] == [f"runs/demo/{name}-seed0" for name in MODELS]
    for job in jobs:
        before = ("train.seed=0", "data.seed=0", "data.path=runs/demo/data")
        assert load_recipe(job.recipe, job.changes) == load_recipe(job.recipe, before)


def test_the_runs_are_in_an_order_that_keeps_two_workers_equally_busy(small, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(run, "run_jobs", lambda jobs, *_, **__: started.extend(jobs))
    run_study("demo", StudyOptions(folder=tmp_path / "demo"))
    names = [job.folder.name for job in started]
    assert names == [f"{name}-seed{seed}" for seed in range(2) for name in MODELS]


def test_the_demo_uses_the_rates_that_its_search_found():
    study = load_study("demo")
    assert study.search is not None
    assert study.search.record is not None
    search = load_search(study.search.record)
    rates = {name: [trial.lr for trial in trials if trial.chosen] for name, trials in search.models.items()}
    for arm in study.arms:
        assert rates[arm.name] == [load_recipe(arm.recipe).optimizer.lr]
        trials = search.models[arm.name]
        assert tuple(trial.lr for trial in trials) == study.search.rates
        assert {trial.steps for trial in trials} == {(study.search.steps,)}


def test_a_run_of_the_demo_that_fails_or_diverges_says_why(small, tmp_path, monkeypatch):
    def troubled(jobs, *_, **__):
        for job in jobs:
            if "rmt" in job.folder.name:
                job.folder.mkdir(parents=True)
                job.log.write_text("widestream: The loss is not finite.\n")
            else:
                write_run(job)

    monkeypatch.setattr(run, "run_jobs", troubled)
    with pytest.raises(UserError, match=r"rmt-seed0 failed: The loss is not finite\."):
        run_demo(StudyOptions(folder=tmp_path / "demo"))


def test_a_failing_run_says_why(tmp_path):
    job = Job(recipe="no/such-recipe", changes=(), folder=tmp_path / "run", steps=5)
    with pytest.raises(UserError, match=r"The run .*run failed: .*no/such-recipe"):
        run_jobs([job], workers=1)


def test_data_that_are_not_prepared_are_told_before_any_run_starts(tmp_path, monkeypatch):
    def job(name, data):
        return Job(recipe="demo/rmt", changes=(f"data.path={data}",), folder=tmp_path / name, steps=5)

    monkeypatch.setattr(Job, "start", lambda *_: pytest.fail("started"))
    jobs = [job("good", write_data(tmp_path / "data")), job("bad", tmp_path / "nothing")]
    with pytest.raises(
        UserError, match=r"bad cannot start\. .*nothing holds no prepared data .*widestream data prepare"
    ):
        run_jobs(jobs, workers=1, may_fail=True)
    assert not [*tmp_path.glob("*.log"), *tmp_path.glob("*.claim")]


def test_terminating_the_demo_ends_its_runs(tmp_path, monkeypatch):
    started = []

    def start(job, gpu=None):
        job.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        started.append(job.process)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()

    monkeypatch.setattr(Job, "start", start)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_:
        run_jobs([Job(recipe="no/such-recipe", changes=(), folder=tmp_path / "run", steps=5)], workers=1)
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


def test_data_is_prepared_once(small, tmp_path):
    options = StudyOptions(folder=tmp_path / "demo")
    data = prepare_data(options)
    assert data == tmp_path / "demo" / "data"
    manifest = (data / "manifest.json").read_bytes()
    small.unlink()
    assert prepare_data(options) == data
    assert (data / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize("name", ["seeds", "steps", "workers"])
def test_options_out_of_range(name):
    with pytest.raises(UserError, match=f"--{name}"):
        StudyOptions(**{name: 0})
