"""The muP search: its draws, trials that are killed, diverge or run side by side, record and recipe, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from widestream.cli import main
from widestream.errors import UserError
from widestream.experiments.tune import search as tune
from widestream.experiments.tune import section as tuning
from widestream.experiments.tune.search import TuneOptions, run_search
from widestream.experiments.tune.space import INTERVALS, KEYS, Space, draw
from widestream.recipe import load_recipe
from widestream.runs import pool

RECIPE = {
    "extends": "tune/transformer",
    "name": "tiny",
    "model": {
        "vocab_size": 257, "context": 16, "num_layers": 1, "num_heads": 2, "head_dim": 8, "mlp_dim": 32,
        "mup": {"base_width": 16, "base_num_heads": 2, "base_head_dim": 8, "base_mlp_dim": 32},
    },
    "data": {"path": "data"},
    "train": {"steps": 4, "batch_size": 2, "device": "cpu", "eval_every": 2, "eval_windows": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from widestream.data.prepare import PrepareOptions, prepare
    from widestream.data.tokenizer import resolve_tokenizer

    place = tmp_path_factory.mktemp("data")
    rows = [json.dumps({"text": f"document {number} tells of streams and keys. " * 3}) for number in range(20)]
    (place / "text.jsonl").write_text("\n".join(rows))
    prepare(
        [str(place / "text.jsonl")], place / "data", resolve_tokenizer("byte"), PrepareOptions(heldout=0.1), workers=1
    )
    return place / "data"


@pytest.fixture
def place(data, tmp_path, monkeypatch):
    """A working directory with a recipe and prepared data."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "data").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pool, "POLL_S", 0.05)
    monkeypatch.setattr(tune, "POLL_S", 0.05)
    return tmp_path


class FakeProcess:
    """A training process that is over at once."""

    def poll(self):
        return 0

    def terminate(self):
        pass

    def wait(self, timeout):
        return 0

    def communicate(self):
        pass


def finish(job):
    """What training leaves behind: the loss is the rate; above 0.05 it diverges."""
    job.folder.mkdir(parents=True, exist_ok=True)
    job.process = FakeProcess()
    rate = float(next(change for change in job.changes if change.startswith("optimizer.lr=")).partition("=")[2])
    if rate > 0.05:
        (job.folder / "nonfinite_step_3.safetensors").touch()
    else:
        (job.folder / "done.json").write_text(json.dumps({"step": 4, "wall_s": 1.5, "heldout": {"loss": rate}}))


def options(**changes):
    return TuneOptions(**{"recipe": "tiny.yaml", "folder": Path("out"), "space": Space("wide", "random", 0)} | changes)


def test_draws_stay_in_their_intervals_and_do_not_depend_on_anything_else():
    for ends in INTERVALS["wide"].values():
        drawn = [draw(0, number, "x", ends) for number in range(300)]
        assert ends[0] <= min(drawn) < max(drawn) <= ends[1]
        middle = (ends[0] * ends[1]) ** 0.5
        assert 120 < sum(value < middle for value in drawn) < 180
    assert draw(0, 3, "lr", (0.1, 1)) == draw(0, 3, "lr", (0.1, 1)) != draw(0, 4, "lr", (0.1, 1))
    assert INTERVALS["paper"]["alpha_in"] == (0.1, 1.0)
    assert INTERVALS["paper"]["lr"] == INTERVALS["wide"]["lr"] == (1e-4, 1e-1)


def test_record_recipe_and_page(place, monkeypatch):
    monkeypatch.setattr(pool.Job, "start", finish)
    record = run_search(options(trials=20))
    assert json.loads((place / "out" / "tune.json").read_text()) == record
    rates = [draw(0, number, "lr", (1e-4, 1e-1)) for number in range(20)]
    assert [row["settings"]["lr"] for row in record["trials"]] == pytest.approx(rates)
    diverged = {number for number, rate in enumerate(rates) if rate > 0.05}
    assert {row["number"] for row in record["trials"] if row["state"] == "diverged"} == diverged
    assert diverged
    assert record["best"] == rates.index(min(rates))
    shares = record["importance"]["shares"]
    assert max(shares, key=lambda name: shares[name]) == "lr"
    # The recipe holds the best settings and can be trained.
    found = load_recipe(place / "out" / "best.yaml")
    assert found.optimizer.lr == pytest.approx(min(rates), rel=0.01)
    assert found.model.mup.input_multiplier == pytest.approx(
        record["trials"][record["best"]]["settings"]["alpha_in"], rel=0.01
    )
    page = (place / "out" / "tune.html").read_text()
    assert "diverged: loss or gradient not finite" in page
    assert f"{len(diverged)} diverged" in " ".join(tuning.sentences(record))
    assert "no claim about large models" in page
    assert len(tuning.slice_charts(record)) == len(KEYS)


def test_a_search_from_before_a_setting_was_there_goes_on(place, monkeypatch):
    monkeypatch.setattr(pool.Job, "start", finish)
    with monkeypatch.context() as older:
        shared = tune._shared
        older.setattr(tune, "_shared", lambda recipe: without_selection(shared(recipe)))
        run_search(options(trials=1))
    assert len(run_search(options(trials=2))["trials"]) == 2


def without_selection(recipe):
    del recipe["train"]["selection"]
    return recipe


def test_a_search_goes_on_and_is_not_mixed_with_another(place, monkeypatch):
    monkeypatch.setattr(pool.Job, "start", finish)
    first = run_search(options(trials=3))
    second = run_search(options(trials=5))
    assert second["trials"][:3] == first["trials"]
    assert len(second["trials"]) == 5
    with pytest.raises(UserError, match=r"another search; it differs in recipe\.train\.steps"):
        run_search(options(trials=5, trial_steps=8))
    with pytest.raises(UserError, match="another search; it differs in space"):
        run_search(options(trials=5, space=Space("paper", "random", 0)))


def test_a_failure_ends_the_search_and_leaves_the_trial_open(place, monkeypatch):
    """It is taken up later, even if the folder was moved."""

    def fail(job):
        job.process = FakeProcess()
        job.folder.mkdir(parents=True, exist_ok=True)
        job.log.write_text("widestream: The disk is full.\n")

    monkeypatch.setattr(pool.Job, "start", fail)
    with pytest.raises(UserError, match="The disk is full"):
        run_search(options(trials=2))
    monkeypatch.setattr(pool.Job, "start", finish)
    with tune._lock(options(), 0):  # as its process does while it lives
        record = run_search(options(trials=1))
        assert [row["state"] for row in record["trials"]] == ["running"]
    (place / "out").rename(place / "moved")
    record = run_search(options(trials=2, folder=Path("moved")))
    assert [row["number"] for row in record["trials"]] == [0, 1]
    assert "running" not in {row["state"] for row in record["trials"]}


def start(folder, *arguments):
    command = [sys.executable, "-m", "widestream", "tune", "tiny.yaml", *arguments, "--out", folder]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def test_a_killed_search_goes_on_with_the_trial_it_left(place):
    """Killed with its training process; the next one takes the same trial up, from its checkpoint."""
    search = start("out", "train.steps=300", "train.eval_every=5", "--trials", "1")
    trial = place / "out" / "trial-0000"
    until(lambda: any(trial.glob("checkpoints/step_*")), search)
    os.killpg(search.pid, signal.SIGKILL)
    search.communicate()
    assert not (trial / "done.json").exists()
    while (lock := tune._lock(options(), 0)) is None:  # its training process is killed too, but may not have ended yet
        time.sleep(0.05)
    lock.close()
    begun = (trial / "metrics.jsonl").read_text().splitlines()[0]
    record = run_search(options(changes=("train.steps=300", "train.eval_every=5"), trials=1))
    assert [(row["number"], row["state"]) for row in record["trials"]] == [(0, "done")]
    lines = (trial / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == begun, "trained anew"
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [*range(1, 301)]


def test_a_trial_is_not_free_before_its_training_process_has_ended(place):
    """Even if the search that began it is gone, and with it that one's hold on the lock."""
    (place / "out").mkdir()
    lock = tune._lock(options(), 0)
    assert lock is not None
    training = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.fileno(),))
    lock.close()
    assert tune._lock(options(), 0) is None
    training.communicate(b"\n")
    lock = tune._lock(options(), 0)
    assert lock is not None
    lock.close()


SEARCH = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_tune import finish, options
from widestream.runs import pool
from widestream.experiments.tune import search as tune
tune.POLL_S = 0.02

def start(job):
    finish(job)
    until = time.monotonic() + 0.1
    job.process.poll = lambda: None if time.monotonic() < until else 0

pool.Job.start = start
Path("ready" + sys.argv[2]).touch()
while not (Path("ready0").exists() and Path("ready1").exists()):
    time.sleep(0.01)
tune.run_search(options(trials=12))
"""


def test_two_processes_share_a_journal(place, monkeypatch):
    """Together they make as many trials as asked for, each of them once."""
    command = [sys.executable, "-c", SEARCH, str(Path(__file__).parent)]
    both = [subprocess.Popen([*command, number], stdout=subprocess.PIPE, text=True) for number in "01"]
    made = [[int(line.split()[1]) for line in process.communicate()[0].splitlines()] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(made[0] + made[1]) == list(range(12))
    assert made[0]
    assert made[1]
    monkeypatch.setattr(pool.Job, "start", None)
    record = run_search(options(trials=12))
    assert "running" not in {row["state"] for row in record["trials"]}


def test_a_database_and_tpe(place, monkeypatch):
    monkeypatch.setattr(pool.Job, "start", finish)
    record = run_search(options(trials=12, storage="sqlite:///search.db", space=Space("paper", "tpe", 0), workers=2))
    assert len(record["trials"]) == 12
    assert (place / "search.db").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["zoo/rmt"], "model.init.scheme=mup"),
        (["tiny.yaml", "--trials", "0"], "--trials is 0"),
        (["tiny.yaml", "--workers", "0"], "--workers is 0"),
        (["tiny.yaml", "--interval", "narrow"], "paper, wide"),
        (["tiny.yaml", "--sampler", "grid"], "random, tpe"),
        (["tiny.yaml", "--storage", "nonsense://x"], "cannot be opened"),
        (["tiny.yaml", "--storage", "no/such/folder/journal.log"], "does not exist"),
        (["tiny.yaml", "data.path=nowhere"], "nowhere"),
    ],
)
def test_bad_input_exits_with_2(place, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr("sys.argv", ["widestream", "tune", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("widestream: ")
    assert words in said


def test_without_optuna_it_says_what_to_install(place, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'widestream\[tune\]'"):
        run_search(options())


def until(happened, process, seconds=400):
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
